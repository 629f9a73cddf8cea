# Many prompts in flight in one session: order, concurrency, equal prompts, and each row's own outcome.
use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY error_ok);

my $gw = LlmGateway->new(name => 'batch');
my $fake = $gw->fake;
my $s = $gw->session;
my ($r, $seen);

$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 0, max_retries = 0});
$gw->add_models('fake', qw(gpt-4o other slow-300 silent), { input_price => 1, output_price => 1 });

sub prompts
{
	my ($n) = @_;
	return "array(SELECT 'p' || g FROM generate_series(1, $n) g)";
}

# Order

srand 42;
$fake->script('gpt-4o', map { { delay_ms => int rand 200 } } 1 .. 60);
is( $s->value('SELECT count(*), bool_and(response = \'echo: p\' || idx), string_agg(idx::text, \',\') = string_agg(idx::text, \',\' ORDER BY idx), min(idx), max(idx)'
		  . ' FROM llm_complete_batch(' . prompts(60) . q{, model => 'gpt-4o', max_concurrency => 20)}),
	'60|t|t|1|60', 'rows are in order, whatever the order of the answers');

# Concurrency

for my $case ([ 8, 40, 8, 'max_concurrency' ], [ 1, 5, 1, 'max_concurrency => 1' ], [ 100, 10, 10, 'more than prompts' ])
{
	my ($concurrency, $n, $most, $name) = @$case;
	$fake->reset;
	$fake->script('gpt-4o', { delay_ms => 150, repeat => 'forever' });
	is($s->value('SELECT count(response) FROM llm_complete_batch(' . prompts($n) . qq{, model => 'gpt-4o', max_concurrency => $concurrency)}), $n, $name);
	is($fake->stats->{max_in_flight}, $most, "$name: in flight");
}
$fake->reset;
$fake->script('gpt-4o', { delay_ms => 150, repeat => 'forever' });
$s->run('SET llm_gateway.batch_concurrency = 5');
$s->value('SELECT count(response) FROM llm_complete_batch(' . prompts(20) . q{, model => 'gpt-4o')});
is($fake->stats->{max_in_flight}, 5, 'llm_gateway.batch_concurrency');
$s->run('RESET llm_gateway.batch_concurrency');
error_ok($s->run(q{SELECT * FROM llm_complete_batch('{a}', model => 'gpt-4o', max_concurrency => 0)}), { sqlstate => '22023' }, 'max_concurrency => 0');

# Equal prompts

$fake->reset;
for my $case (
	[ 'auto',    3 ],
	[ 'on',      3 ],
	[ 'off',     6 ],
	[ 'refresh', 6 ])
{
	my ($cache, $count) = @$case;
	$seen = $gw->requests(
		sub { $r = $s->run(qq{SELECT idx, response, cached, cost_usd > 0, cost_usd = 0, attempts
				FROM llm_complete_batch('{a,b,a,a,c,b}', model => 'gpt-4o', cache => '$cache')}) });
	is(scalar @$seen, $count, "cache => '$cache': requests");
	my @rows = map { [ split /\|/ ] } split /\n/, $r->{out};
	is(join(' ', map { $_->[1] } @rows), 'echo: a echo: b echo: a echo: a echo: c echo: b', "cache => '$cache': answers");
	is(join(' ', map { $_->[2] } @rows), $count == 3 ? 'f f t t f t' : 'f f f f f f', "cache => '$cache': which are shared");
	is(join(' ', map { $_->[3] } @rows), $count == 3 ? 't t f f t f' : 't t t t t t', "cache => '$cache': which cost");
	is(join(' ', map { $_->[4] } @rows), $count == 3 ? 'f f t t f t' : 'f f f f f f', "cache => '$cache': which are free");
	is(join(' ', map { $_->[5] } @rows), $count == 3 ? '1 1 0 0 1 0' : '1 1 1 1 1 1', "cache => '$cache': attempts");
}
$seen = $gw->requests(sub { $r = $s->run(q{SELECT error_class, response IS NULL FROM llm_complete_batch('{a,never asked}', model => 'gpt-4o', cache => 'only')}) });
is($r->{out}, "|f\nno_candidate|t", q{cache => 'only': what "on" has kept, and nothing else});
is(scalar @$seen, 0, 'makes no call');
is( $s->value(q{SELECT count(DISTINCT request_id) FROM llm_complete_batch('{a,b,a,a,c,b}', model => 'gpt-4o')}),
	'6', 'each row has a request id');
$seen = $gw->requests(sub { $s->value(q{SELECT llm_complete('a', model => 'gpt-4o'), llm_complete('a', model => 'gpt-4o')}) });
is(scalar @$seen, 2, 'scalar calls are each made');

# NULLs, and arrays of other shapes

is( $s->value(q{SELECT string_agg(idx || ' ' || coalesce(response, 'NULL') || ' ' || coalesce(error_class, 'NULL'), ', ' ORDER BY idx)
		FROM llm_complete_batch(ARRAY['a', NULL, 'b', NULL], model => 'gpt-4o')}),
	'1 echo: a NULL, 2 NULL NULL, 3 echo: b NULL, 4 NULL NULL', 'a NULL prompt has a row, without a call');
is($s->value(q{SELECT count(*) FROM llm_complete_batch('{}', model => 'gpt-4o')}), '0', 'no prompts');
is($s->value(q{SELECT count(*) FROM llm_complete_batch(NULL, model => 'gpt-4o')}), '0', 'NULL');
is($s->value(q{SELECT string_agg(idx || ' ' || response, ', ' ORDER BY idx) FROM llm_complete_batch('[5:6]={a,b}', model => 'gpt-4o')}),
	'1 echo: a, 2 echo: b', 'idx starts at 1 whatever the array does');
is($s->value(q{SELECT string_agg(idx || ' ' || response, ', ' ORDER BY idx) FROM llm_complete_batch('{{a,b},{c,d}}', model => 'gpt-4o')}),
	'1 echo: a, 2 echo: b, 3 echo: c, 4 echo: d', 'two dimensions');
is($s->value(q{SELECT idx, error_class FROM llm_complete_batch(ARRAY['', 'a'], model => 'gpt-4o') WHERE error_class IS NOT NULL}),
	'1|invalid_request', 'an empty prompt is its own error');

# Errors of rows

$fake->reset;
$fake->script('gpt-4o', 'default', 'status-500', 'default', { behaviour => 'cut', headers => { connection => 'close' } }, 'content-policy', { delay_ms => 300 }, 'default');
is( $s->value(q{SELECT idx, response, error_class, error_message <> '', finish_reason FROM llm_complete_batch('{a,b,c,d,e,f,g}', model => 'gpt-4o', max_concurrency => 1)}),
	"1|echo: a|||stop\n2||server_error|t|\n3|echo: c|||stop\n4||malformed|t|\n5||content_policy|t|\n6|echo: f|||stop\n7|echo: g|||stop",
	'each row has its own outcome');
$fake->script('gpt-4o', 'status-500');
is( $s->value(q{SELECT string_agg(coalesce(error_class, response) || ' ' || cached, ', ' ORDER BY idx) FROM llm_complete_batch('{a,a}', model => 'gpt-4o')}),
	'server_error false, server_error false', 'a failure is shared, but is no cached answer');
$fake->script('gpt-4o', 'status-500', 'default');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 1 WHERE error_class = 'server_error'});
is($s->value(q{SELECT response, attempts FROM llm_complete_batch('{a}', model => 'gpt-4o')}), 'echo: a|2', 'retries');
$r = $s->run(q{SELECT idx, finish_reason FROM llm_complete_batch(array['short', repeat('long ', 100)], model => 'gpt-4o', max_tokens => 10)});
is($r->{out}, "1|stop\n2|length", 'answers cut by a token limit');
is($r->{notices}[0]{sqlstate}, '01004', 'with one warning');
like($r->{notices}[0]{message}, qr/1 of 2 answers/, 'for all of them');
error_ok($s->run(q{SELECT * FROM llm_complete_batch('{a,b}', model => 'no-such')}), { sqlstate => '42704' }, 'a model that does not exist is an error');
$fake->reset;
$seen = $gw->requests(
	sub { $r = $s->run(q{SELECT string_agg(coalesce(response, error_class), ',' ORDER BY idx) FROM llm_complete_batch('{a,b,c}', model => 'silent', timeout_ms => 300, max_concurrency => 3)}) });
is($r->{out}, 'timeout,timeout,timeout', 'timeout_ms is of each call');

# A thousand

$fake->reset;
$fake->script('gpt-4o', { delay_ms => 5000, repeat => 'forever' });
$r = $s->run('SELECT count(*), count(response), count(DISTINCT response), sum(attempts) FROM llm_complete_batch(' . prompts(1000)
	  . q{, model => 'gpt-4o', max_concurrency => 2000)});
is($r->{out}, '1000|1000|1000|1000', 'a thousand prompts');
is($r->{notices}[0]{severity} // '', 'NOTICE', 'more than max_batch_concurrency: a notice');
like($r->{notices}[0]{message} // '', qr/max_concurrency of 2000 is capped at 1000/, 'that says what is done');
is($fake->stats->{requests}, 1000, 'a thousand requests');
cmp_ok($fake->stats->{max_in_flight}, '>=', 500, 'most of them in flight together');
is($fake->stats->{internal_errors}, 0, 'the fake itself is sound');
is($s->value(q{SELECT llm_complete('hi', model => 'other')}), 'echo: hi', 'the next call works');
is($s->run('SELECT count(response) FROM llm_complete_batch(' . prompts(20) . q{, model => 'other', max_concurrency => 1000)})->{err}, '', 'no notice at 1000');

# Answers that have come are not late because nobody looked, however many they are

$fake->reset;
$fake->script('gpt-4o', { delay_ms => 9000, repeat => 'forever' });
$s->start('SELECT count(*) FILTER (WHERE response IS NOT NULL), string_agg(DISTINCT error_class, \',\') FROM llm_complete_batch(' . prompts(500)
	  . q{, model => 'gpt-4o', max_concurrency => 500, timeout_ms => 15000)});
ok($fake->wait_for(sub { $_[1]{in_flight} == 500 }), '500 calls are in flight');
sleep 6;    # until libcurl waits for nothing but the answers
kill STOP => $s->pid;
ok($fake->wait_for(sub { ($_[1]{outcomes}{delivered} // 0) == 500 }), 'all are answered while the backend stands still');
sleep 7;
kill CONT => $s->pid;
is($s->finish->{out}, '500|', 'past their time the answers are there');

# The end of a batch

$fake->reset;
$s->start('SELECT count(*) FROM llm_complete_batch(' . prompts(50) . q{, model => 'silent', max_concurrency => 30)});
ok($fake->wait_for(sub { $_[1]{in_flight} == 30 }), '30 calls are in flight');
my $when = time;
$gw->admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
$r = $s->finish;
error_ok($r, { sqlstate => '57014' }, 'a batch is cancelled');
cmp_ok($r->{ended} - $when, '<', PROMPTLY, 'at once');
ok($fake->wait_for(sub { ($_[1]{outcomes}{client_closed} // 0) == 30 && $_[1]{in_flight} == 0 }), 'all of its connections are closed');
is($fake->stats->{requests}, 30, 'and no more are made');
is($s->value(q{SELECT response FROM llm_complete_batch('{hi}', model => 'gpt-4o')}), 'echo: hi', 'the next batch works');

is($s->value('SELECT count(*) FROM (SELECT * FROM llm_complete_batch(' . prompts(5) . q{, model => 'gpt-4o') LIMIT 2) x}), '2', 'LIMIT');
$s->run('BEGIN; DECLARE c CURSOR FOR SELECT idx, response FROM llm_complete_batch(' . prompts(5) . q{, model => 'gpt-4o'); FETCH 1 FROM c});
is($s->value('FETCH 2 FROM c'), "2|echo: p2\n3|echo: p3", 'a cursor');
is($s->value(q{SELECT llm_complete('between', model => 'gpt-4o')}), 'echo: between', 'a call between two of its rows');
is($s->value('FETCH ALL FROM c'), "4|echo: p4\n5|echo: p5", 'and the rest');
$s->run('COMMIT');

# Calls within calls

is( $s->value(q{SELECT string_agg(response, ',' ORDER BY idx) FROM llm_complete_batch(array(SELECT llm_complete('p' || g, model => 'gpt-4o') FROM generate_series(1, 3) g), model => 'other')}),
	'echo: echo: p1,echo: echo: p2,echo: echo: p3', 'prompts made by calls');
is( $s->value(q{SELECT string_agg(response, ',' ORDER BY idx) FROM llm_complete_batch(array(SELECT response FROM llm_complete_batch('{a,b}', model => 'gpt-4o')), model => 'other')}),
	'echo: echo: a,echo: echo: b', 'prompts made by a batch');
is($s->value(q{SELECT llm_complete(llm_complete(llm_complete('x', model => 'gpt-4o'), model => 'other'), model => 'gpt-4o')}),
	'echo: echo: echo: x', 'nested calls');
is( $s->value(q{SELECT string_agg(a.response || '/' || b.response, ' ' ORDER BY a.idx, b.idx)
		FROM llm_complete_batch('{a,b}', model => 'gpt-4o') a, LATERAL llm_complete_batch(ARRAY[a.response, 'z'], model => 'other') b}),
	'echo: a/echo: echo: a echo: a/echo: z echo: b/echo: echo: b echo: b/echo: z', 'a lateral batch');

# PL/pgSQL

$gw->sql(q{CREATE FUNCTION ask(which text, OUT answer text) LANGUAGE plpgsql AS $$
	BEGIN
		BEGIN
			SELECT string_agg(response, ',' ORDER BY idx) INTO answer FROM llm_complete_batch('{a,b}', model => which);
			IF answer IS NULL THEN
				PERFORM llm_complete('a', model => which);
			END IF;
		EXCEPTION WHEN SQLSTATE 'LG004' THEN
			answer := llm_complete('caught ' || SQLSTATE, model => 'other');
		END;
	END $$});
is($s->value(q{SELECT ask('gpt-4o')}), 'echo: a,echo: b', 'in PL/pgSQL');
$fake->script('gpt-4o', { behaviour => 'status-500', repeat => 'forever' });
is($s->value(q{SELECT ask('gpt-4o')}), 'echo: caught LG004', 'in a block with EXCEPTION');
is($s->value(q{SELECT ask('gpt-4o') FROM generate_series(1, 3)}), join("\n", ('echo: caught LG004') x 3), 'again and again');
$fake->reset;
is($s->value(q{SELECT ask('gpt-4o')}), 'echo: a,echo: b', 'and afterwards');

# an error between rows of a function that calls, while a batch's argument is evaluated
error_ok($s->run(q{SELECT * FROM llm_complete_batch(array(SELECT llm_complete('p' || (1 / (3 - g)), model => 'gpt-4o') FROM generate_series(1, 5) g), model => 'other')}),
	{ sqlstate => '22012' }, 'an error while the prompts are made');
ok($fake->wait_for(sub { $_[1]{in_flight} == 0 }), 'leaves nothing in flight');
is($s->value(q{SELECT response FROM llm_complete_batch('{hi}', model => 'gpt-4o')}), 'echo: hi', 'the next batch works');
unlike($gw->log_text, qr/in the ledger already/, 'each row was recorded once');
$gw->no_crash_ok;

done_testing();
