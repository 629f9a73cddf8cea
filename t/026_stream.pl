# llm_stream: rows come while the provider still writes, whatever ends the statement ends the call,
# and what was given and what was not is in the books.
#
# The client is a few lines of the wire protocol, which note when each row came: psql and libpq wait
# for all of them.
use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use JSON::PP;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw($KEY PROMPTLY USUALLY error_ok row);

my $gw = LlmGateway->new(name => 'stream');
my $fake = $gw->fake;
my $node = $gw->node;
my $admin = $gw->admin;
my $s = $gw->session;
my $root = 'http://' . $fake->host . ':' . $fake->port;
my $json = JSON::PP->new->canonical->ascii;
my ($c, $r, $row);

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = least(max_retries, 1)');

# in millionths of a dollar
my %prices = (input_price => 1, output_price => 100);
$gw->add_models('fake', qw(gpt-4o drip-3000 drip-200 drip-50 empty length status-503 status-400 silent drip-20+unicode-split drip-1+unicode-split+one-byte scripted), {%prices});

# Events of the wire.

sub delta
{
	my ($text) = @_;
	return 'data: ' . $json->encode({ object => 'chat.completion.chunk', choices => [ { index => 0, delta => { content => $text }, finish_reason => undef } ] }) . "\n\n";
}

sub ending
{
	my ($prompt, $completion) = @_;
	return
	    'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}' . "\n\n"
	  . qq(data: {"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":$prompt,"completion_tokens":$completion,"total_tokens":99}}\n\n)
	  . "data: [DONE]\n\n";
}

# The model "scripted" answers next with these words, one after the other with a gap; the options
# are those of a script's step.
sub drip
{
	my ($ms, $words, %options) = @_;
	$fake->script('scripted', { chunks => [ map({ delta($_) } @$words), ending(7, 3) ], chunk_delay_ms => $ms, %options });
	return;
}

# How many connections wait at the fake.
sub in_flight { return $fake->stats->{in_flight} }

# Waits until the last request's books are closed, and returns its row.
sub booked
{
	ok($gw->drained, 'all is booked') or return {};
	return row($admin, 'SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT 1');
}

sub booked_ok
{
	my ($want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$row = booked();
	is_deeply({ map { $_ => $row->{$_} } keys %$want }, $want, "$name: booked");
	return;
}

# The fake has seen the client go, promptly after that moment, and not at the end of the answer.
my @delays;

sub closed_ok
{
	my ($when, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $entry;
	ok($fake->wait_for(sub { $entry = $fake->last_request; ($entry->{outcome} // '') eq 'client_closed' }), "$name: the provider sees the connection close")
	  or return;
	my $late = $entry->{ended} - $when;
	note(sprintf '%s: after %.1f ms', $name, 1000 * $late);
	cmp_ok($late, '<', PROMPTLY, "$name: promptly");
	push @delays, $late;
	return;
}

sub text { return join '', map { $_->[0] } @{ $_[0]{rows} } }

# Rows as they come

$c = Wire->new($node);
# none of them ends with what the key begins with, which would be held back
my @words = ('The', ' quick', ' brown', ' fox', ' leapt');

for my $case (
	[ 'simple query',               sub { $c->query($_[0]) } ],
	[ 'extended query',             sub { $c->execute($_[0], 0) } ],
	[ 'extended query, a row each', sub { $c->execute($_[0], 1) }, 1 ],
	[ 'extended query, two rows each', sub { $c->execute($_[0], 2) }, 2 ])
{
	my ($name, $start, $limit) = @$case;
	my @wrong;

	# a machine that is held up may hold up a row, or bring two chunks at once
	for (1 .. 3)
	{
		@wrong = ();
		$fake->reset;
		drip(300, \@words);
		$start->(q{SELECT llm_stream('hi', model => 'scripted')});
		my $all = $c->read;
		my $suspended = 0;
		while ($all->{suspended})
		{
			$suspended++;
			$c->resume($limit);
			my $more = $c->read;
			push @{ $all->{$_} }, @{ $more->{$_} } for qw(rows at);
			$all->{suspended} = $more->{suspended};
			$all->{tag} = $more->{tag};
			$all->{error} //= $more->{error};
		}
		is($all->{error}, undef, "$name: no error");
		is(text($all), join('', @words), "$name: the answer");
		like($all->{tag} // '', qr/^SELECT \d$/, "$name: and an end");
		push @wrong, scalar @{ $all->{rows} } . ' rows' if @{ $all->{rows} } != @words;
		push @wrong, "$suspended portions" if $limit && $suspended != int(@words / $limit);

		# the head goes out at once, the first chunk 300 ms after it
		my $sent = $fake->last_request->{time};
		for my $i (0 .. $#{ $all->{at} })
		{
			my $late = $all->{at}[$i] - ($sent + 0.3 * ($i + 1));
			push @wrong, "row $i after $late s" if $late <= -0.05 || $late >= 0.25;
		}
		last if !@wrong;
	}
	is(join(', ', @wrong), '', "$name: each chunk is a row, soon after it came and not before");
}

# Several rows at once do not wait for each other, nor for the end.
drip(0, [ 'a' .. 'e' ], chunks => [ delta('a') . delta('b'), delta('c') . delta('d'), delta('e'), ending(7, 3) ], chunk_delay_ms => 400);
$c->query(q{SELECT llm_stream('hi', model => 'scripted')});
$r = $c->read;
is(text($r), 'abcde', 'chunks of several events');
is(scalar @{ $r->{rows} }, 3, 'are a row each');
cmp_ok($r->{at}[2] - $r->{at}[0], '>', 0.2, 'as they come');

# COPY, too, sends what it has
drip(300, \@words);
$c->query(q{COPY (SELECT llm_stream('hi', model => 'scripted')) TO STDOUT});
$r = $c->read;
is(join('', map { $_->[0] =~ s/\n//r } @{ $r->{rows} }), join('', @words), 'COPY');
cmp_ok($r->{at}[-1] - $r->{at}[0], '>', 0.4, 'COPY: as they come');

# psql waits for all rows, or with FETCH_COUNT for so many
for my $case ([ 'psql', 0 ], [ 'psql with FETCH_COUNT', 1 ])
{
	my ($name, $count) = @$case;
	drip(300, \@words);
	my @command = ($node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres'), '-v', "FETCH_COUNT=$count",
		'-c', q{SELECT llm_stream('hi', model => 'scripted')});
	open my $psql, '-|', @command or die "cannot run psql: $!";
	my ($out, @at) = ('');
	push @at, time while sysread $psql, $out, 4096, length $out;
	close $psql;
	is($out =~ s/\n//gr, join('', @words), $name);
	$count ? cmp_ok($at[-1] - $at[0], '>', 0.4, "$name: as they come") : cmp_ok($at[-1] - $at[0], '<', 0.1, "$name: all at the end");
}

# Through a CTE and a subquery, but not in FROM
for my $case (
	[ 'in a subquery', q{SELECT t FROM (SELECT llm_stream('hi', model => 'scripted') AS t) AS q},        1 ],
	[ 'in a CTE',      q{WITH q AS (SELECT llm_stream('hi', model => 'scripted') AS t) SELECT t FROM q}, 1 ],
	[ 'in FROM',       q{SELECT t FROM llm_stream('hi', model => 'scripted') AS t},                      0 ],
	[ 'under ORDER BY', q{SELECT t FROM (SELECT llm_stream('hi', model => 'scripted') AS t, 1 AS n) AS q ORDER BY n}, 0 ])
{
	my ($name, $query, $spread) = @$case;
	drip(250, \@words);
	$c->query($query);
	$r = $c->read;
	is(text($r), join('', @words), $name);
	my $took = $r->{at}[-1] - $r->{at}[0];
	$spread ? cmp_ok($took, '>', 0.25, "$name: as they come") : cmp_ok($took, '<', 0.1, "$name: all at the end");
}

# Text

for my $model ('drip-20+unicode-split', 'drip-1+unicode-split+one-byte')
{
	$c->query(qq{SELECT llm_stream('hi', model => '$model')});
	$r = $c->read;
	my $want = $s->value(qq{SELECT llm_complete('hi', model => '$model')});
	is(encode('UTF-8', text($r)), $want, "$model: the text");
	ok(!$r->{broken}, "$model: rows of whole characters");
	cmp_ok(scalar @{ $r->{rows} }, '>', 1, "$model: several of them");
}
drip(0, [ "\x{1f418}", "\x{1f468}\x{200d}", "\x{1f469}", 'e', "\x{301}", '' ]);
$c->query(q{SELECT llm_stream('hi', model => 'scripted')});
$r = $c->read;
is(text($r), "\x{1f418}\x{1f468}\x{200d}\x{1f469}e\x{301}", 'emoji');
is(scalar(grep { $_->[0] eq '' } @{ $r->{rows} }), 0, 'no empty rows');

is($s->value(q{SELECT count(*) FROM (SELECT llm_stream('hi', model => 'empty')) AS q}), '0', 'an empty answer: no rows');
is(scalar @{ $gw->requests(sub { is($s->value(q{SELECT count(*) FROM (SELECT llm_stream(NULL, model => 'gpt-4o')) AS q}), '0', 'NULL: no rows') }) }, 0, 'and no request');
is($s->value(q{SELECT string_agg(t, '') FROM llm_stream('Hello, world', model => 'gpt-4o') AS t}), 'echo: Hello, world', 'in FROM');
is($s->value(q{SELECT n, string_agg(t, '') FROM (SELECT n, llm_stream('no ' || n, model => 'gpt-4o') AS t FROM generate_series(1, 3) AS n) AS q GROUP BY n ORDER BY n}),
	"1|echo: no 1\n2|echo: no 2\n3|echo: no 3", 'a call for each row');
is($s->value(q{SELECT n, (SELECT string_agg(t, '') FROM (SELECT llm_stream('no ' || n, model => 'gpt-4o') AS t) AS q) FROM generate_series(1, 3) AS n}),
	"1|echo: no 1\n2|echo: no 2\n3|echo: no 3", 'in a subquery that is run again');
is($s->value(q{SELECT n, (SELECT left(t, 4) FROM (SELECT llm_stream('no ' || n, model => 'drip-50') AS t) AS q LIMIT 1) FROM generate_series(1, 3) AS n}),
	"1|echo\n2|echo\n3|echo", 'and that is not read to its end');

# Two in one list: each goes on when both have a row
$c->query(q{SELECT llm_stream('12345678', model => 'drip-50'), llm_stream('abc', model => 'gpt-4o')});
$r = $c->read;
is($r->{error}, undef, 'two in a list');
is(join('', map { $_->[0] // '' } @{ $r->{rows} }), 'echo: 12345678', 'two in a list: the first');
is(join('', map { $_->[1] // '' } @{ $r->{rows} }), 'echo: abc', 'two in a list: the second');

# A provider that does not stream
$gw->add_provider('whole', $fake->url('/whole'), { options => q('{"stream": false}') });
$gw->add_models('whole', 'm-whole', { %prices, upstream_name => "'gpt-4o'" });
$gw->add_models('fake', 'json-only');
for my $model (qw(m-whole json-only))
{
	is($s->value(qq{SELECT count(*), min(t) FROM (SELECT llm_stream('Hello, world', model => '$model') AS t) AS q}), '1|echo: Hello, world', "$model: one row");
}
ok(!$fake->journal->[-2]{body}{stream}, 'not asked to stream');

# The other dialects
for my $case ([ 'anthropic', "$root/anthropic" ], [ 'gemini', $root ], [ 'ollama', $root ], [ 'azure', $root ])
{
	my ($kind, $url) = @$case;
	$gw->add_provider($kind, $url, { kind => "'$kind'" });
	$gw->add_models($kind, "m-$kind", { %prices, upstream_name => "'drip-150'" });
	$c->query(qq{SELECT llm_stream('Good morning to you', model => 'm-$kind')});
	$r = $c->read;
	is(text($r), 'echo: Good morning to you', "$kind: the answer");
	cmp_ok(scalar @{ $r->{rows} }, '>=', 5, "$kind: in rows");
	cmp_ok($r->{at}[-1] - $r->{at}[0], '>', 0.15, "$kind: as they come");
	booked_ok({ operation => 'stream', provider => $kind, status => 'ok', cost_source => 'usage' }, $kind);
}
$gw->sql(q{SELECT count(*) FROM llm_add_provider('mock')});
is($s->value(q{SELECT string_agg(t, '') = llm_complete('hi', model => 'mock-economy') FROM (SELECT llm_stream('hi', model => 'mock-economy') AS t) AS q}), 't', 'mock');

# The books

$fake->reset;
drip(0, \@words);
$s->value(q{SELECT llm_stream('What does the fox do?', model => 'scripted', tags => '{"a": "b"}')});
booked_ok(
	{
		operation    => 'stream',
		status       => 'ok',
		provider     => 'fake',
		model        => 'scripted',
		attempts     => 1,
		input_tokens => 7,
		output_tokens => 3,
		cost_source  => 'usage',
		error_class  => undef,
	},
	'a whole stream');
is($row->{cost_usd} * 1e6, 7 * 1 + 3 * 100, 'at its price');
drip(400, \@words);
$s->value(q{SELECT llm_stream('hi', model => 'scripted')});
$row = booked();
cmp_ok($row->{ttft_ms}, '>=', 395, 'the time to the first words');
cmp_ok($row->{ttft_ms}, '<', 2000, 'is not that to the last ones');
cmp_ok($row->{latency_ms}, '>=', 2395, 'which is this');

# Ended early

sub early_ok
{
	my ($name, $end, %more) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $when = $end->();
	closed_ok($when, $name);
	booked_ok({ operation => 'stream', status => 'cancelled', cost_source => 'estimate', attempts => 1, model => 'drip-200' }, $name);
	# the prompt, and the words that came
	is($row->{input_tokens}, 25, "$name: with the prompt");
	cmp_ok($row->{output_tokens}, '>=', 1, "$name: and what was seen");
	cmp_ok($row->{output_tokens}, '<', 20, "$name: but no more");
	is(sprintf('%.0f', $row->{cost_usd} * 1e6), 25 + 100 * $row->{output_tokens}, "$name: at its price");
	return;
}

my $long = q{SELECT llm_stream(repeat('long ', 20), model => 'drip-200')};
my $answer = 'echo: ' . 'long ' x 20;

$c->query("$long LIMIT 2");
$r = $c->read;
is(index($answer, text($r)), 0, 'LIMIT');
is(scalar @{ $r->{rows} }, 2, 'LIMIT: rows');
early_ok('LIMIT', sub { $r->{ended} });

$c->query(q{SELECT llm_stream(repeat('long ', 20), model => 'drip-3000') LIMIT 1});
$r = $c->read;
cmp_ok($r->{ended} - $r->{at}[0], '<', 2.5, 'LIMIT does not wait for the row after it');
ok($gw->drained, 'and is booked');

$c->run('BEGIN');
$c->run("DECLARE c CURSOR FOR $long");
is(scalar @{ $gw->requests(sub { sleep 0.1 }) }, 0, 'a cursor alone makes no call');
my @got;
for my $i (1 .. 3)
{
	$r = $c->run('FETCH 1 FROM c');
	push @got, @{ $r->{rows} };
}
is(scalar @got, 3, 'FETCH 1');
is(index($answer, join '', map { $_->[0] } @got), 0, 'FETCH 1: the beginning');
early_ok('CLOSE', sub { my $t = time; $c->run('CLOSE c'); return $t });
$c->run('COMMIT');

$c->run('BEGIN');
$c->run("DECLARE c CURSOR FOR $long");
$c->run('FETCH 2 FROM c');
early_ok('COMMIT with an open cursor', sub { my $t = time; $c->run('COMMIT'); return $t });

$c->run('BEGIN');
$c->run("DECLARE c CURSOR FOR $long");
$c->run('FETCH 2 FROM c');
early_ok('ROLLBACK with an open cursor', sub { my $t = time; $c->run('ROLLBACK'); return $t });

# the extended protocol, whose portal is closed by the client
$c->run('BEGIN');
$c->execute($long, 2);
is(scalar @{ $c->read->{rows} }, 2, 'a portion');
early_ok('closing the portal', sub { my $t = time; $c->close_portal; $c->read; return $t });
$c->run('COMMIT');

# without a transaction, Sync ends the portal
$c->execute($long, 2, 1);
$r = $c->read;
early_ok('Sync', sub { $r->{ended} });
is($c->run('SELECT 1')->{rows}[0][0], '1', 'the session goes on');

# cancel and time-out, while the call waits, after rows
for my $case ([ 'cancel', qr/user request/ ], [ 'statement_timeout', qr/statement timeout/ ])
{
	my ($name, $message) = @$case;
	$c->run(q{SET statement_timeout = '2s'}) if $name ne 'cancel';
	$c->query($long);
	$r = $c->read(2);
	my $when = time;
	$admin->value('SELECT pg_cancel_backend(' . $c->pid . ')') if $name eq 'cancel';
	$r = $c->read;
	$when = $r->{ended} if $name ne 'cancel';
	is($r->{error}{C}, '57014', $name);
	like($r->{error}{M}, $message, "$name: message");
	cmp_ok($r->{ended} - $when, '<', PROMPTLY, "$name: at once");
	early_ok($name, sub { $when });
	$c->run('RESET statement_timeout');
}

# terminated: while it waits, and between two FETCHes
for my $case ('while it waits', 'between two FETCHes')
{
	my $d = Wire->new($node);
	if ($case eq 'while it waits')
	{
		$d->query($long);
		$d->read(2);
	}
	else
	{
		$d->run('BEGIN');
		$d->run("DECLARE c CURSOR FOR $long");
		$d->run('FETCH 2 FROM c');
	}
	early_ok("terminate $case", sub { my $t = time; $admin->value('SELECT pg_terminate_backend(' . $d->pid . ')'); return $t });
	is($d->read->{error}{C}, '57P01', "terminate $case: the client is told");
}
cmp_ok((sort { $a <=> $b } @delays)[ @delays / 2 ], '<', USUALLY, 'as a rule the provider sees it at once');

# the client goes away: noticed with the next row that cannot be sent
{
	my $d = Wire->new($node);
	$d->query($long);
	$d->read(1);
	my $when = time;
	$d->disconnect;
	ok($fake->wait_for(sub { ($fake->last_request->{outcome} // '') eq 'client_closed' }), 'a client that is gone: the provider sees the connection close');
	cmp_ok($fake->last_request->{ended} - $when, '<', 4, 'a client that is gone: within a few rows');
	booked_ok({ operation => 'stream', status => 'cancelled' }, 'a client that is gone');
}

# Retries and fallbacks are not seen before the first row

$fake->reset;
$fake->script('scripted', 'status-503', { chunks => [ map({ delta($_) } @words), ending(7, 3) ] });
$c->query(q{SELECT llm_stream('hi', model => 'scripted')});
$r = $c->read;
is(text($r), join('', @words), 'a retry before the first row');
is_deeply($r->{notices}, [], 'without a word');
booked_ok({ status => 'ok', attempts => 2, provider => 'fake', fallback => 'false' }, 'a retry');

$gw->add_provider('spare', $fake->url('/spare'));
$gw->add_models('spare', 'gpt-4o', {%prices});
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('route', 'fake/status-503', 1), ('route', 'spare/gpt-4o', 2),
	('broken', 'fake/scripted', 1), ('broken', 'spare/gpt-4o', 2)});
$c->query(q{SELECT llm_stream('hi', model => 'route')});
$r = $c->read;
is(text($r), 'echo: hi', 'a fallback before the first row');
booked_ok({ status => 'ok', attempts => 3, provider => 'spare', fallback => 'true' }, 'a fallback');

# a stream that fails before it has said anything
$fake->script('scripted', { chunks => [ delta('') ], repeat => 2, then => 'cut' });
$c->query(q{SELECT llm_stream('hi', model => 'broken')});
is(text($c->read), 'echo: hi', 'a fallback after a stream that broke before its first word');

# After the first row there is no way back

$gw->sql(q{UPDATE llm_providers SET idle_timeout = '2 s' WHERE name = 'fake'});
for my $case (
	[ 'drip-100+cut',             'LG010', 'malformed',      qr/ended before it was complete/ ],
	[ 'drip-100+cut-short',       'LG004', 'network',        qr/./ ],
	[ 'drip-100+malformed',       'LG010', 'malformed',      qr/event of the stream/ ],
	[ 'drip-100+error-in-stream', 'LG004', 'server_error',   qr/server had an error/ ],
	[ 'drip-100+reset-mid',       'LG004', 'network',        qr/./ ],
	[ 'drip-100+stall',           'LG003', 'timeout',        qr/stopped for 2000 ms \(idle_timeout\)/ ])
{
	my ($model, $sqlstate, $class, $message) = @$case;
	$gw->add_models('fake', $model, {%prices});
	$gw->sql(qq{DELETE FROM llm_routing_rules WHERE alias = 'broken';
		INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('broken', 'fake/$model', 1), ('broken', 'spare/gpt-4o', 2)});
	for my $on_error (qw(error null))
	{
		$c->run("SET llm_gateway.on_error = '$on_error'");
		my $requests = $gw->requests(sub {
			$c->query(q{SELECT llm_stream('Hello, how are you today?', model => 'broken')});
			$r = $c->read;
		});
		cmp_ok(scalar @{ $r->{rows} }, '>=', 1, "$model: rows");
		ok(index('echo: Hello, how are you today?', text($r)) == 0, "$model: the answer's beginning");
		is($r->{error}{C}, $sqlstate, "$model, on_error = $on_error: SQLSTATE");
		like($r->{error}{M} // '', $message, "$model: message");
		like($r->{error}{D} // '', qr/^fake\/\Q$model\E: $class after \d+ ms: /, "$model: detail");
		is(scalar @$requests, 1, "$model: nobody else is asked");
		booked_ok({ status => 'error', error_class => $class, attempts => 1, cost_source => 'estimate', operation => 'stream' }, $model);
		cmp_ok($row->{cost_usd}, '>', 0, "$model: what came is charged");
	}
	$c->run('RESET llm_gateway.on_error');
}
$gw->sql(q{UPDATE llm_providers SET idle_timeout = '30 s' WHERE name = 'fake'});

# Failures before the first row are those of any call

error_ok($s->run(q{SELECT llm_stream('hi', model => 'fake/status-503')}), { sqlstate => 'LG004', message => qr/all 2 attempts failed/, detail => qr/overloaded/, hint => qr/./ }, 'status 503');
booked_ok({ status => 'error', error_class => 'overloaded', operation => 'stream', attempts => 2 }, 'status 503');
error_ok($s->run(q{SELECT llm_stream('hi', model => 'status-400')}), { sqlstate => 'LG008' }, 'status 400');
error_ok($s->run(q{SELECT llm_stream('hi', model => 'none')}), { sqlstate => '42704' }, 'no such model');
error_ok($s->run(q{SELECT llm_stream('hi', 'gpt-4o')}), { sqlstate => '42704', hint => qr/model => 'gpt-4o'/ }, 'no such priority');
is(scalar @{ $gw->requests(sub { error_ok($s->run(q{SELECT llm_stream('hi', model => 'gpt-4o', cache => 'only')}), { sqlstate => 'LG005', message => qr/^no answer is cached/ }, 'cache: only') }) }, 0, 'cache: only makes no request');

$s->run(q{SET llm_gateway.on_error = 'null'});
$r = $s->run(q{SELECT llm_stream('hi', model => 'fake/status-503')});
is($r->{sqlstate}, undef, 'on_error = null: no error');
is($r->{out}, '', 'on_error = null: no rows');
is(join(' ', map { "$_->{severity} $_->{sqlstate}" } @{ $r->{notices} }), 'WARNING LG004', 'on_error = null: a warning');
like($r->{notices}[0]{detail}, qr/overloaded/, 'on_error = null: with its detail');
error_ok($s->run(q{SELECT llm_stream('hi', model => 'gpt-4o', cache => 'only')}), { sqlstate => 'LG005' }, 'on_error = null: not for what no provider did');
$s->run('RESET llm_gateway.on_error');

# Cut by a limit

$r = $s->run(q{SELECT string_agg(t, '') FROM (SELECT llm_stream('Hello, how are you?', model => 'gpt-4o', max_tokens => 2) AS t) AS q});
is($r->{out}, 'echo: He', 'cut by max_tokens');
is($r->{notices}[0]{sqlstate}, '01004', 'cut by max_tokens: a warning');
like($r->{notices}[0]{message}, qr/max_tokens of 2/, 'cut by max_tokens: it says so');
$r = $s->run(q{SELECT count(llm_stream) FROM llm_stream('hi', model => 'length')});
like($r->{notices}[0]{message}, qr/output limit of model "length"/, 'cut by the model');

# The key

my $stars = '*' x length $KEY;
for my $case (
	[ 'in one piece',       [ 'Your key is ', $KEY, ', is it not?' ],                                            "Your key is $stars, is it not?" ],
	[ 'in two',             [ 'Your key is ' . substr($KEY, 0, 11), substr($KEY, 11) . ', is it not?' ],         "Your key is $stars, is it not?" ],
	[ 'letter by letter',   [ 'Your key is ', split(//, $KEY), ', is it not?' ],                                 "Your key is $stars, is it not?" ],
	[ 'twice',              [ substr("$KEY$KEY", 0, 40), substr("$KEY$KEY", 40) ],                               "$stars$stars" ],
	[ 'after its beginning', [ substr($KEY, 0, 8), substr($KEY, 0, 8), substr($KEY, 8) ],                        substr($KEY, 0, 8) . $stars ],
	[ 'at the end',         [ 'It is ', substr($KEY, 0, 20), substr($KEY, 20) ],                                 "It is $stars" ],
	[ 'only its beginning', [ 'It begins with ', substr($KEY, 0, 7) ],                                           'It begins with ' . substr($KEY, 0, 7) ],
	[ 'before an emoji',    [ 'It is ', substr($KEY, 0, 20), substr($KEY, 20) . "\x{1f511}", "\x{1f511}" ],      "It is $stars\x{1f511}\x{1f511}" ])
{
	my ($name, $chunks, $want) = @$case;
	drip(@$chunks > 9 ? 15 : 150, $chunks);    # so far apart that they are rows
	$c->query(q{SELECT llm_stream('hi', model => 'scripted')});
	$r = $c->read;
	is(text($r), $want, "the key, $name");
	cmp_ok(scalar @{ $r->{rows} }, '>', 1, "the key, $name: in rows") if @$chunks > 2;
}

# A slow reader: what came while nobody looked is not late

$gw->add_provider('slow', $fake->url('/slow'), { connect_timeout => "'2 s'", first_byte_timeout => "'2 s'", idle_timeout => "'2 s'" });
$gw->add_models('slow', 'm-slow', { upstream_name => "'scripted'" });
for my $case ([ 'is done', 20 ], [ 'goes on', 300 ])
{
	my ($name, $gap) = @$case;
	for my $between ('nothing', 'another call')
	{
		my @many = map { "$_ " } 1 .. 16;
		$fake->reset;
		drip($gap, \@many);
		# a new session has a new connection, whose time-outs have begun
		my $d = Wire->new($node);
		$d->run('BEGIN');
		$d->run(q{DECLARE c CURSOR FOR SELECT llm_stream('hi', model => 'm-slow')});
		my $got = '';
		for (1 .. 2)
		{
			$got .= text($d->run('FETCH 1 FROM c'));
			sleep 2.6;
			if ($between ne 'nothing')
			{
				is(text($d->run(q{SELECT llm_complete('hi', model => 'spare/gpt-4o')})), 'echo: hi', "a slow reader, the provider $name: another call");
			}
		}
		$r = $d->run('FETCH ALL FROM c');
		is($r->{error} && "$r->{error}{C} $r->{error}{M}", undef, "a slow reader, the provider $name, $between meanwhile: no time-out");
		is($got . text($r), join('', @many), "a slow reader, the provider $name, $between meanwhile: the whole answer");
		$d->run('COMMIT');
	}
}

# one that does stop is late, also when nobody looked
drip(0, [ 'a', 'b' ], chunks => [ delta('a') ], then => 'stall');
$c->run('BEGIN');
$c->run(q{DECLARE c CURSOR FOR SELECT llm_stream('hi', model => 'm-slow')});
is(text($c->run('FETCH 1 FROM c')), 'a', 'a provider that stops');
sleep 2.2;
$r = $c->run('FETCH 1 FROM c');
is($r->{error}{C}, 'LG003', 'is late');
$c->run('ROLLBACK');

# more than the server's and the kernel's buffers hold, and a client that does not read it
{
	my $want = join '', map { sprintf '%07d ', $_ } 1 .. 400_000;
	$gw->sql(q{UPDATE llm_providers SET total_timeout = '60 s'});
	$fake->script('scripted', { text => $want, repeat => 3 });
	my $d = Wire->new($node);
	$d->query(q{SELECT llm_stream('hi', model => 'm-slow')});
	sleep 3;
	$r = $d->read;
	is($r->{error} && "$r->{error}{C} $r->{error}{M}", undef, 'a client that does not read: no time-out');
	ok(text($r) eq $want, 'a client that does not read: the whole answer');
}

# Nothing stays behind

sub descriptors
{
	my ($pid) = @_;
	opendir my $dir, "/proc/$pid/fd" or die "/proc/$pid/fd: $!";
	my $n = grep { /^\d+$/ } readdir $dir;
	closedir $dir;
	return $n;
}

sub contexts { return $s->value(q{SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'llm_gateway%'}) }

my $abort = <<'SQL';
DO $$
DECLARE
	c refcursor;
	t text;
BEGIN
	FOR i IN 1 .. 10 LOOP
		BEGIN
			OPEN c FOR SELECT llm_stream('a long prompt ' || i, model => 'drip-50');
			FETCH c INTO t;
			IF t NOT LIKE 'echo%' THEN RAISE EXCEPTION 'got %', t; END IF;
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			c := NULL;
		END;
	END LOOP;
	FOR t IN SELECT llm_stream('a long prompt', model => 'drip-50') LOOP
		EXIT;
	END LOOP;
END
$$
SQL
is($s->run($abort)->{sqlstate}, undef, 'aborted subtransactions');
my @before = (contexts(), descriptors($s->pid));
$fake->reset;
is($s->run($abort)->{sqlstate}, undef, 'aborted subtransactions, again');
is($fake->wait_for(sub { $_[1]{in_flight} == 0 ? 'none' : 0 }), 'none', 'aborted subtransactions: no call is left');
is($fake->stats->{outcomes}{client_closed}, 11, 'aborted subtransactions: the provider has seen each close');
is(contexts(), $before[0], 'aborted subtransactions: no memory is left');
is(descriptors($s->pid), $before[1], 'aborted subtransactions: no descriptor is left');
ok($gw->drained, 'aborted subtransactions: all is booked');
is($admin->value(q{SELECT count(*), count(*) FILTER (WHERE status = 'cancelled') FROM (SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT 11) AS q}), '11|11', 'aborted subtransactions: as cancelled');

# a cursor that outlives its transaction has been read by its end
$s->run('BEGIN');
$s->run(q{DECLARE held CURSOR WITH HOLD FOR SELECT llm_stream('hello', model => 'drip-50')});
my $held = $s->value('FETCH 1 FROM held');
like($held, qr/^echo/, 'a cursor WITH HOLD');
$s->run('COMMIT');
is(in_flight(), 0, 'a cursor WITH HOLD: done with COMMIT');
is(($held . $s->value('FETCH ALL FROM held')) =~ s/\n//gr, 'echo: hello', 'a cursor WITH HOLD: the rest');
$s->run('CLOSE held');

# a cursor that goes back does not ask again
$s->run('BEGIN');
$s->run(q{DECLARE c SCROLL CURSOR FOR SELECT llm_stream('hello', model => 'drip-200')});
is(scalar @{ $gw->requests(sub { is($s->value("FETCH 2 FROM c;\nFETCH ABSOLUTE 1 FROM c;\nFETCH ALL FROM c"), "echo\n: he\necho\n: he\nllo", 'a SCROLL cursor') }) }, 1, 'a SCROLL cursor: one call');
$s->run('COMMIT');

$gw->no_crash_ok;
done_testing();

# A client of the wire protocol.

package Wire;

use strict;
use warnings;

use Carp qw(croak);
use Encode qw(decode encode);
use IO::Select;
use IO::Socket::UNIX;
use Time::HiRes qw(time);

sub new
{
	my ($class, $node) = @_;
	my $socket = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port) or croak "cannot connect: $!";
	my $self = bless { socket => $socket, buffer => '', synced => 1 }, $class;
	my $user = getpwuid $<;
	my $body = pack('N', 3 << 16) . join('', map { "$_\0" } user => $user, database => 'postgres', client_encoding => 'UTF8') . "\0";
	$self->_put(pack('N', 4 + length $body) . $body);
	my $r = $self->read;
	croak "cannot connect: $r->{error}{M}" if $r->{error} || !$self->{pid};
	return $self;
}

sub pid { return $_[0]{pid} }

sub disconnect { return close $_[0]{socket} }

# The simple protocol.
sub query
{
	my ($self, $sql) = @_;
	$self->{synced} = 1;
	return $self->_send(Q => encode('UTF-8', $sql) . "\0");
}

sub run { $_[0]->query($_[1]); return $_[0]->read }

# The extended protocol: up to so many rows (0: all), and then Flush, or Sync.
sub execute
{
	my ($self, $sql, $limit, $sync) = @_;
	$self->_send(P => "\0" . encode('UTF-8', $sql) . "\0\0\0");
	$self->_send(B => "portal\0\0" . pack('nnn', 0, 0, 0));
	$self->_send(D => "Pportal\0");
	$self->resume($limit, $sync // !$limit);
	return;
}

sub resume
{
	my ($self, $limit, $sync) = @_;
	$self->_send(E => "portal\0" . pack 'N', $limit);
	$self->{synced} = $sync // 0;
	return $self->_send($sync ? 'S' : 'H', '');
}

sub close_portal
{
	my ($self) = @_;
	$self->_send(C => "Pportal\0");
	$self->{synced} = 1;
	return $self->_send(S => '');
}

# Reads until the server is ready, a portion is over, so many rows have come, or the connection has
# ended:
#
#	rows, at    references to arrays: the rows, and when each came
#	broken      true: a row was not UTF-8
#	tag         of the command
#	suspended   true: the portion is over
#	error       its fields by their letters; undef: there was none
#	notices     likewise, a reference to an array
#	ended       when the last message came
sub read    ## no critic (ProhibitBuiltinHomonyms)
{
	my ($self, $rows) = @_;
	my $r = { rows => [], at => [], notices => [] };
	while (my ($type, $body) = $self->_message)
	{
		$r->{ended} = time;
		if ($type eq 'D' || $type eq 'd')
		{
			my @row = $type eq 'd' ? $body : _columns($body);
			push @{ $r->{at} }, $r->{ended};
			push @{ $r->{rows} }, [
				map {
					my $text = $_;
					if (defined $text) { $text = eval { decode('UTF-8', $_, Encode::FB_CROAK | Encode::LEAVE_SRC) } // do { $r->{broken} = 1; $_ } }
					$text
				} @row ];
			return $r if $rows && @{ $r->{rows} } == $rows;
		}
		elsif ($type eq 'E') { $r->{error} //= _fields($body) }
		elsif ($type eq 'N') { push @{ $r->{notices} }, _fields($body) }
		elsif ($type eq 'C') { $r->{tag} = $body =~ s/\0\z//r; }
		elsif ($type eq 'K') { $self->{pid} = unpack 'N', $body }
		elsif ($type eq 's')
		{
			$r->{suspended} = 1;
			return $r unless $self->{synced};
		}
		elsif ($type eq 'Z')  { return $r }

		# the last portion, after Flush: nobody has asked yet whether the server is ready
		if ($type =~ /[CE]/ && !$self->{synced})
		{
			$self->_send(S => '');
			$self->{synced} = 1;
		}
	}
	return $r;
}

sub _columns
{
	my ($body) = @_;
	my ($count) = unpack 'n', $body;
	my $at = 2;
	my @row;
	for (1 .. $count)
	{
		my $length = unpack 'l>', substr $body, $at, 4;
		$at += 4;
		push @row, $length < 0 ? undef : substr $body, $at, $length;
		$at += $length if $length > 0;
	}
	return @row;
}

sub _fields
{
	my ($body) = @_;
	return { map { substr($_, 0, 1) => decode('UTF-8', substr $_, 1) } grep { length } split /\0/, $body };
}

sub _send { my ($self, $type, $body) = @_; return $self->_put($type . pack('N', 4 + length $body) . $body) }

sub _put
{
	my ($self, $bytes) = @_;
	syswrite($self->{socket}, $bytes) == length $bytes or croak "cannot send: $!";
	return;
}

# The next message, or nothing at the connection's end.
sub _message
{
	my ($self) = @_;
	while (1)
	{
		if (length $self->{buffer} >= 5)
		{
			my ($type, $length) = unpack 'aN', $self->{buffer};
			if (length $self->{buffer} > $length)
			{
				my $message = substr $self->{buffer}, 0, 1 + $length, '';
				return ($type, substr $message, 5);
			}
		}
		IO::Select->new($self->{socket})->can_read($LlmGateway::PATIENCE) or croak 'the server does not answer';
		sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer} or return;
	}
}
