# llm_complete_json: what comes back satisfies the schema, or it is an error.
use strict;
use warnings;
use utf8;

use FindBin;
use JSON::PP;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY PROMPTLY error_ok literal rows);

my $json = JSON::PP->new->utf8(0)->canonical->allow_nonref;
my $gw = LlmGateway->new(name => 'json');
my $fake = $gw->fake;
my $s = $gw->session;
my $root = 'http://' . $fake->host . ':' . $fake->port;

my $schema = {
	type                 => 'object',
	properties           => { city => { type => 'string' }, size => { type => 'integer', minimum => 1 } },
	required             => [ 'city', 'size' ],
	additionalProperties => JSON::PP::false,
};
my $GOOD = '{"city": "Oslo", "size": 3}';
my $BAD = '{"city": "Oslo", "size": "secret"}';
my $WRONG = '"/size": expected an integer, found a string';

$gw->sql('UPDATE llm_error_policies SET max_retries = 0');
$gw->add_models('fake', qw(gpt-4o json silent slow-500 status-500 content-policy refusal empty tools leak-key-in-answer),
	{ input_price => 1, output_price => 2 });
$gw->add_models('fake', 'plain', { capabilities => "'{chat}'" });

# The statement, with SQL expressions for arguments: prompt and schema are literals of what is given.
sub statement
{
	my (%args) = @_;
	my $prompt = exists $args{prompt} ? delete $args{prompt} : 'Describe a city';
	my $wanted = exists $args{schema} ? delete $args{schema} : $schema;
	$wanted = $json->encode($wanted) if ref $wanted;
	my @sql = (literal($prompt), 'schema => ' . literal($wanted));
	push @sql, "$_ => $args{$_}" for sort keys %args;
	my $sql = 'SELECT llm_complete_json(' . join(', ', @sql) . ')';
	utf8::encode($sql);
	return $sql;
}

sub run { return $s->run(statement(@_)) }

sub text { return { text => $_[0], ($_[1] ? %{ $_[1] } : ()) } }

# The newest requests of the ledger, oldest first.
sub ledger
{
	my ($n) = @_;
	return [ reverse rows($s, "SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT $n") ];
}

# Runs the code; what the fake was asked meanwhile.
sub asked
{
	my ($code) = @_;
	my $before = $fake->stats->{requests};
	$code->();
	return $fake->asked($before);
}

# Every case of the validator, end to end

open my $cases, '<:encoding(UTF-8)', "$FindBin::Bin/json_schema_cases.txt" or die "json_schema_cases.txt: $!";
my $models = 'fake/gpt-4o';
my (%seen, @wrong);
while (my $line = <$cases>)
{
	chomp $line;
	next if $line =~ /^#|^\s*$/;
	my ($rule, $document, $verdict) = split / \| /, $line;
	next unless $rule =~ /^\{/;    # the others are tested below
	my ($kind, $reason) = $verdict =~ /^(\w+)(?:: (.*))?$/;
	$seen{$kind}++;
	my $encoded = $document;
	$fake->script('gpt-4o', $kind eq 'refused' ? () : text($encoded, { repeat => $kind eq 'valid' ? 1 : 2 }));
	my $before = $fake->stats->{requests};
	my $r = run(schema => $rule, model => literal($models));
	my $requests = $fake->stats->{requests} - $before;
	my $good;
	if ($kind eq 'valid')
	{
		my $same = $s->value('SELECT ' . do { my $l = literal($r->{out}); $l } . '::jsonb = ' . do { my $l = literal($document); utf8::encode($l); $l } . '::jsonb') if defined $r->{out} && $r->{out} ne '';
		$good = !defined $r->{sqlstate} && ($same // '') eq 't' && $requests == 1;
	}
	elsif ($kind eq 'invalid')
	{
		utf8::encode($reason);
		my @lines = split /\n/, $r->{detail} // '';
		$good = ($r->{sqlstate} // '') eq 'LG011' && @lines == 2 && $requests == 2
		  && 2 == grep { m{^fake/gpt-4o: schema after \d+ ms: \Q$reason\E$} } @lines;
	}
	else
	{
		utf8::encode($reason);
		$good = ($r->{sqlstate} // '') eq '22023' && ($r->{message} // '') eq "schema cannot be used: $reason" && $requests == 0;
	}
	push @wrong, "$line\n  requests: $requests\n  $r->{err}$r->{out}" unless $good;
}
$fake->script('gpt-4o');
cmp_ok($seen{$_}, '>', 50, "cases: $_") for qw(valid invalid refused);
is(scalar @wrong, 0, 'all cases of the validator') or diag(join "\n", @wrong);

# Arguments

is(run(prompt => undef)->{out}, '', 'no prompt: NULL');
is(run(prompt => undef, schema => undef)->{sqlstate}, undef, 'whatever the schema');
error_ok(run(schema => undef), { sqlstate => '22023', message => qr/^schema must not be null$/, hint => qr/schema =>/ }, 'no schema');
error_ok($s->run(q{SELECT llm_complete_json('x')}), { sqlstate => '22023', message => qr/^schema must not be null$/ }, 'none given');
error_ok(run(schema => $_), { sqlstate => '22023', message => qr/^schema must be a JSON schema, an object$/, hint => qr/schema =>/ }, "schema $_") for '[]', '"object"', 'true', '1', 'null';
error_ok(run(schema => { properties => { a => { if => {} } } }), { sqlstate => '22023', message => qr/^schema cannot be used: unsupported keyword "if" at "\/properties\/a"$/, hint => qr/./ }, 'a keyword that is not enforced');
error_ok(run(prompt => ''), { sqlstate => '22023', message => qr/^prompt must not be empty$/ }, 'an empty prompt');
error_ok($s->run(q{SELECT * FROM llm_chat('[{"role": "user", "content": "x"}]', schema => '{"if": {}}')}), { sqlstate => '22023', message => qr/unsupported keyword "if"/ }, 'nor does llm_chat take one');
error_ok(run(cache => q{'only'}, model => q{'gpt-4o'}), { sqlstate => 'LG005', message => qr/no answer is cached/ }, 'cache => only');

# Each dialect, held to the schema and told of it, streamed and whole

my %dialects = (
	openai    => [ $fake->url,        sub { $_[0]{response_format}{json_schema}{schema} } ],
	azure     => [ $root,             sub { $_[0]{response_format}{json_schema}{schema} } ],
	anthropic => [ "$root/anthropic", sub { $_[0]{tools}[0]{input_schema} } ],
	gemini    => [ $root,             sub { $_[0]{generationConfig}{responseJsonSchema} } ],
	ollama    => [ $root,             sub { $_[0]{format} } ],
);
for my $kind (sort keys %dialects)
{
	my ($url, $schema_of) = @{ $dialects{$kind} };
	for my $stream (qw(true false))
	{
		my $name = "${kind}_$stream";
		$gw->add_provider($name, $url, { kind => "'$kind'", options => qq('{"stream": $stream}') });
		$gw->add_models($name, 'json');
		for my $capabilities (undef, '{chat,json_schema}', '{chat}')
		{
			my $native = !defined $capabilities || $capabilities =~ /json_schema/;
			my $what = "$name, capabilities " . ($capabilities // 'unknown');
			$gw->sql('UPDATE llm_models SET capabilities = ' . literal($capabilities) . " WHERE provider = '$name'");
			my $before = $fake->stats->{requests};
			my $r = run(prompt => "Copy $GOOD", system_prompt => q{'Be brief.'}, model => "'$name/json'");
			is($r->{out}, $GOOD, $what) or diag($r->{err});
			my ($request) = @{ $fake->journal($before) };
			my ($asked) = @{ $fake->asked($before) };
			is($asked->{invalid}, undef, 'a sound request');
			is_deeply($schema_of->($request->{body}), $native ? $schema : undef, $native ? 'held to the schema' : 'not held to a schema');
			is_deeply($asked->{schema}, $native ? $schema : undef, 'as the fake understands it') if $kind ne 'anthropic' || !$native;
			my $system = $asked->{messages}[0];
			is($system->{role}, 'system', 'a system prompt');
			if ($native)
			{
				is($system->{text}, 'Be brief.', 'as it was given');
			}
			else
			{
				like($system->{text}, qr/^Be brief\.\n\nAnswer with one JSON document only.*:\n\{/s, 'with the schema after it');
				my ($said) = $system->{text} =~ /:\n(\{.*\})$/s;
				is_deeply($json->decode($said), $schema, 'all of it');
			}
			$r = run(prompt => "Copy $GOOD", degrade => 'false', model => "'$name/json'");
			if ($native)
			{
				is($r->{out}, $GOOD, 'also with degrade => false');
				next;
			}
			error_ok($r, { sqlstate => 'LG005', detail => qr{^\Q$name\E/json: not tried: lacks json_schema$}, hint => qr/json_schema/ }, 'but not with degrade => false');
		}

		# the repair, as each dialect tells it
		$gw->sql("UPDATE llm_models SET capabilities = NULL WHERE provider = '$name'");
		$fake->script('json', text($BAD), text($GOOD));
		my $r;
		my $asked = asked(sub { $r = run(prompt => 'Oslo', model => "'$name/json'") });
		is($r->{out}, $GOOD, "$name: repaired") or diag($r->{err});
		is(scalar @$asked, 2, 'two requests');
		my @messages = @{ $asked->[1]{messages} };
		is_deeply([ map { $_->{role} } @messages ], [qw(user assistant user)], 'the second is a conversation');
		is_deeply([ map { $_->{text} } @messages[ 0, 1 ] ], [ 'Oslo', $BAD ], 'the prompt, and the answer');
		like($messages[2]{text}, qr/\Q$WRONG\E.*only/s, 'and what is wrong with it');
		is($asked->[1]{invalid}, undef, 'which the provider takes');
	}
}

# A fallback may be told what the first choice was held to.
$gw->sql(q{INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('mixed', 'fake/status-500', 1), ('mixed', 'fake/plain', 2)});
$fake->script('plain', text($GOOD));
my $r;
my $asked = asked(sub { $r = run(model => q{'mixed'}) });
is($r->{out}, $GOOD, 'a fallback that lacks json_schema');
is_deeply([ map { $_->{schema} } @$asked ], [ $schema, undef ], 'held to it, and told of it');
error_ok(run(model => q{'mixed'}, degrade => 'false'), { sqlstate => 'LG004', detail => qr{fake/plain: not tried: lacks json_schema} }, 'without degrading there is no fallback');

# The repair begins where the first answer came from.
$fake->script('plain', text($BAD), text($GOOD));
$asked = asked(sub { $r = run(model => q{'mixed'}) });
is($r->{out}, $GOOD, 'a repair after a fallback');
is_deeply([ map { $_->{model} } @$asked ], [qw(status-500 plain plain)], 'of the same model');
is_deeply([ map { "$_->{operation} $_->{status} " . ($_->{error_class} // '-') . " $_->{attempts}" } @{ ledger(2) } ], [ 'json error schema 2', 'json ok - 1' ], 'two requests in the ledger');
$gw->sql(q{INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('two', 'fake/plain', 1), ('two', 'fake/gpt-4o', 2)});
$fake->script('plain', text($BAD), 'status-500');
$fake->script('gpt-4o', text($GOOD));
is(run(model => q{'two'})->{out}, $GOOD, 'or goes on to the next');

# What counts as one document

for my $case (
	[ "```json\n$GOOD\n```",        1 ],
	[ " \n```\n$GOOD\n```\n ",      1 ],
	[ "````JSON\r\n$GOOD\r\n````",  1 ],
	[ "```json\n$GOOD",             1 ],
	[ "\n\t$GOOD \r\n",             1 ],
	[ "Here it is: $GOOD",          0, 'the answer is not valid JSON: syntax error' ],
	[ "$GOOD $GOOD",                0, 'the answer is not valid JSON: syntax error' ],
	[ "```json\n$GOOD\n``` Well?",  0, 'the answer is not valid JSON: syntax error' ],
	[ "``` x y\n$GOOD\n```",        0, 'the answer is not valid JSON: syntax error' ],
	[ '{"city": "Oslo"',            0, 'the answer is not valid JSON: cut short' ],
	[ '{"city": "a\u0000", "size": 1}', 0, q{the answer is valid, but has a character that the database's encoding cannot hold} ],
	[ '[' x 30000,                  0, qr/^the answer is not valid JSON: / ],
	[ '```',                        0, 'the answer is empty' ],
	[ " \n ",                       0, 'the answer is empty' ],
	[ '',                           0, 'the answer is empty' ],
	[ '{"city": "Oslo", "size": 1, "size": 2}', 2 ])
{
	my ($text, $good, $reason) = @$case;
	my $what = substr $json->encode($text), 0, 60;
	$fake->script('plain', text($text, { repeat => $good ? 1 : 2 }));
	$asked = asked(sub { $r = run(model => q{'plain'}) });
	if ($good)
	{
		is($r->{out}, $good == 2 ? '{"city": "Oslo", "size": 2}' : $GOOD, "one document: $what");
		is(scalar @$asked, 1, 'at once');
		next;
	}
	$reason = qr/^\Q$reason\E$/ unless ref $reason;
	is($r->{sqlstate}, 'LG011', "no document: $what");
	my @detail = split /\n/, $r->{detail} // '';
	is(scalar @detail, 2, 'both rounds') or diag($r->{err});
	s{^fake/plain: schema after \d+ ms: }{} for @detail;
	like($_, $reason, 'why') for @detail;
	is_deeply([ map { $_->{role} } grep { $_->{role} ne 'system' } @{ $asked->[1]{messages} } ], $text =~ /^\s*$/ ? [qw(user user)] : [qw(user assistant user)], 'the repair');
}

# LG011: what was wrong in both rounds, and nothing of what the documents say

$fake->script('json', text($BAD), text('{"size": 0, "hidden": "secret"}'));
error_ok(run(model => q{'fake/json'}),
	{
		sqlstate => 'LG011',
		message  => qr/^model "json" of provider "fake": the answer does not satisfy the schema: .* \(asked twice\)$/,
		detail   => qr{^fake/json: schema after \d+ ms: \Q$WRONG\E\nfake/json: schema after \d+ ms: [^\n]+$},
		hint     => qr/./
	},
	'LG011');
$fake->script('json', text($BAD, { repeat => 2 }));
$r = run(model => q{'fake/json'});
unlike($r->{err}, qr/secret/, 'without values');
my @requests = @{ ledger(2) };
is_deeply([ map { "$_->{operation} $_->{status} $_->{error_class} $_->{attempts}" } @requests ], [ ('json error schema 1') x 2 ], 'the ledger');
ok($_->{cost_usd} > 0, 'each with its cost') for @requests;
is($requests[0]{prompt_hash}, $requests[1]{prompt_hash}, 'of one prompt');
is($s->value("SELECT count(*) FROM llm_attempts WHERE request_id IN ($requests[0]{request_id}, $requests[1]{request_id}) AND error_class IS NULL"), '2', 'attempts that were answered');

# keys do not come back, not in escapes either
my $escaped = join '', map { sprintf '\u%04x', ord } split //, $KEY;
for my $sent ($KEY, $escaped)
{
	$fake->script('json', text(qq({"city": "$sent", "size": 1})));
	$r = run(model => q{'fake/json'});
	like($r->{out}, qr/"city": "\*+"/, 'a key is masked') or diag($r->{err});
	$fake->script('json', text(qq({"$sent": 1}), { repeat => 2 }));
	$r = run(model => q{'fake/json'});
	is($r->{sqlstate}, 'LG011', 'also as a name');
	unlike($r->{err}, qr/\Q$KEY\E/, 'in an error');
}

# on_error
$s->value(q{SET llm_gateway.on_error = 'null'});
$fake->script('json', text($BAD, { repeat => 2 }));
$r = run(model => q{'fake/json'});
is($r->{sqlstate}, undef, 'on_error');
is($r->{out}, '', 'NULL');
is($r->{notices}[0]{sqlstate}, 'LG011', 'with a warning');
like($r->{notices}[0]{detail}, qr/\Q$WRONG\E\n.*\Q$WRONG\E$/, 'that says why');
is(run(model => q{'fake/status-500'})->{notices}[0]{sqlstate}, 'LG004', 'of other errors too');
$s->value('RESET llm_gateway.on_error');

# Other errors are as those of llm_complete, in the first round and in the second.
for my $case ([ 'status-500', 'LG004' ], [ 'content-policy', 'LG006' ], [ 'refusal', 'LG006' ], [ 'status-429', 'LG002' ])
{
	my ($behaviour, $sqlstate) = @$case;
	$fake->script('json', $behaviour);
	error_ok(run(model => q{'fake/json'}), { sqlstate => $sqlstate, hint => qr/./ }, "$behaviour: $sqlstate");
	$fake->script('json', text($BAD), $behaviour);
	error_ok(run(model => q{'fake/json'}), { sqlstate => $sqlstate, detail => qr{^fake/json: schema after \d+ ms: \Q$WRONG\E\nfake/json: } }, 'in the repair');
}

# the repair does not fit, so that the first answer is what is wrong
$gw->sql(q{UPDATE llm_models SET context_window = 200 WHERE provider = 'fake' AND name = 'plain'});
$fake->script('plain', text('{"city": "' . ('x' x 4000) . '"}'));
error_ok(run(model => q{'plain'}),
	{ sqlstate => 'LG011', message => qr/lacks the required property "size"/, detail => qr/^fake\/plain: schema .*\nfake\/plain: not tried: the prompt of about \d+ tokens/ },
	'no room for a repair');
$gw->sql(q{UPDATE llm_models SET context_window = NULL WHERE provider = 'fake' AND name = 'plain'});

# An answer that a limit cut
$fake->script('json', text('{"city": "Os', { finish => 'length' }));
$asked = asked(sub { $r = run(model => q{'fake/json'}, max_tokens => 3) });
error_ok($r, { sqlstate => 'LG011', message => qr/the answer was cut by the call's max_tokens of 3$/, detail => qr/cut short$/, hint => qr/^Raise max_tokens\.$/ }, 'cut');
is(scalar @$asked, 1, 'and not asked for again');
$fake->script('json', text('{"city": "Os', { finish => 'length' }));
error_ok(run(model => q{'fake/json'}), { sqlstate => 'LG011', message => qr/cut by the output limit of model "json"/, hint => qr/larger limit/ }, 'cut by the model');
$fake->script('json', text("$GOOD\n\n\n", { finish => 'length' }));
is(run(model => q{'fake/json'})->{out}, $GOOD, 'cut where it was whole');
$fake->script('json', text('12', { finish => 'length' }));
error_ok(run(model => q{'fake/json'}, schema => '{"type": "integer"}'), { sqlstate => 'LG011', message => qr/was cut/ }, 'a number that may lack digits');
$fake->script('json', text($BAD), text('{"city": "Os', { finish => 'length' }));
error_ok(run(model => q{'fake/json'}), { sqlstate => 'LG011', message => qr/was cut/, detail => qr/\Q$WRONG\E\n.*cut short$/ }, 'a repair that was cut');

# a tool that nobody offered is no answer
$fake->script('json', { body => { choices => [ { index => 0, finish_reason => 'tool_calls', message => { role => 'assistant', content => undef, tool_calls => [ { id => 'a', type => 'function', function => { name => 'f', arguments => '{}' } } ] } } ], usage => { prompt_tokens => 1, completion_tokens => 1, total_tokens => 2 } }, repeat => 2 });
error_ok(run(model => q{'fake/json'}), { sqlstate => 'LG011', message => qr/the answer is empty/ }, 'a tool call');

# Time-outs: one for both rounds
$fake->script('json', text($BAD, { delay_ms => 1500 }), 'silent');
$r = run(model => q{'fake/json'}, timeout_ms => 3000);
error_ok($r, { sqlstate => 'LG003', message => qr/not done within its 3000 ms/, detail => qr/\Q$WRONG\E\nfake\/json: timeout/ }, 'timeout_ms');
cmp_ok($r->{seconds}, '<', 4.4, 'of both rounds together');
cmp_ok($r->{seconds}, '>=', 2.99, 'and not before');

# Cancelled, in either round
for my $before (0, 1)
{
	$fake->script('json', ($before ? text($BAD) : ()), 'silent');
	my $from = $fake->stats->{requests};
	$s->start(statement(model => q{'fake/json'}));
	$fake->wait_for_stats(sub { $_[0]{requests} > $from + $before });
	$gw->wait_in_call($s);
	$gw->admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
	error_ok($s->finish, { sqlstate => '57014' }, "cancelled in round @{[ $before + 1 ]}");
	ok($gw->drained, 'all is booked');
	is_deeply([ map { $_->{status} } @{ ledger($before + 1) } ], [ ('error') x $before, 'cancelled' ], 'the ledger');
}

# A big schema, and a big answer
my %properties = map { ("property_$_" => { type => 'object', properties => { map { ("p_$_" => { type => 'integer' }) } 1 .. 20 } }) } 1 .. 1000;
my $big = { type => 'object', properties => \%properties, required => [ sort keys %properties ] };
my $document = { map { ($_ => { map { ("p_$_" => $_) } 1 .. 20 }) } keys %properties };
for my $model (qw(json plain))
{
	$fake->script($model, text($json->encode($document)));
	$asked = asked(sub { $r = run(schema => $big, model => "'fake/$model'") });
	is_deeply($json->decode($r->{out}), $document, "$model: a big schema") or diag(substr $r->{err}, 0, 1000);
	is_deeply($asked->[0]{schema}, $model eq 'json' ? $big : undef, 'is sent');
}

# Texts are kept where a superuser wants that: of an answer that did not do, too.
$gw->sql('ALTER SYSTEM SET llm_gateway.log_content = on');
$gw->sql('SELECT pg_reload_conf()');
my $logged = $gw->session;
like($logged->run('SHOW llm_gateway.log_content')->{out}, qr/on/, 'texts are kept');
$fake->script('json', text($BAD), text($GOOD));
is($logged->value(statement(prompt => 'Which?', model => q{'fake/json'})), $GOOD, 'repaired');
is_deeply([ map { "$_->{prompt}: $_->{response}" } @{ ledger(2) } ], [ "Which?: $BAD", "Which?: $GOOD" ], 'both answers');

# llm_chat asks once, and says it in the row.
my $chat = q{SELECT response, finish_reason, error_class, error_message FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'fake/json', schema => } . literal($json->encode($schema)) . ')';
$fake->script('json', text($BAD));
$asked = asked(sub { $r = $s->run($chat) });
is($r->{out}, qq(|stop|schema|model "json" of provider "fake": the answer does not satisfy the schema: $WRONG), 'llm_chat');
is(scalar @$asked, 1, 'asked once');
$fake->script('json', text($GOOD));
is($s->value($chat), "$GOOD|stop||", 'an answer that satisfies it');
$fake->script('json', text("```json\n$GOOD\n```"));
like($s->value($chat), qr/^\|stop\|schema\|.*not valid JSON/, 'a fence is text that a caller would stumble over');

# It may be called where calls may.
$gw->sql('CREATE ROLE app LOGIN');
my $app = $gw->session('postgres', user => 'app');
error_ok($app->run(statement(model => q{'fake/json'})), { sqlstate => '42501', message => qr/permission denied for function llm_complete_json/ }, 'nobody may');
$gw->sql(q{SELECT llm_grant('app')});
$fake->script('json', text($GOOD));
is($app->value(statement(model => q{'fake/json'})), $GOOD, 'but who is granted calls');
$gw->sql(q{SELECT llm_revoke('app')});
error_ok($app->run(statement(model => q{'fake/json'})), { sqlstate => '42501' }, 'as long as that is so');

# Another encoding
$gw->sql(q{CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$gw->set_up('latin1');
$gw->add_models('fake', 'json', { database => 'latin1' });
my $latin1 = $gw->session('latin1');
$latin1->value(q{SET client_encoding = 'UTF8'});
$fake->script('json', text("{\"\x{e9}\": \"\x{fc}\"}"));
is($latin1->value(statement(schema => { required => ["\x{e9}"] }, model => q{'json'})), do { my $t = "{\"\x{e9}\": \"\x{fc}\"}"; utf8::encode($t); $t }, 'LATIN1');
$fake->script('json', text("{\"\x{20ac}\": 1}"), text("{\"\x{e9}\": 1}"));
$r = $latin1->run(statement(schema => { required => ["\x{e9}"] }, model => q{'json'}));
ok(defined $r->{sqlstate} ? $r->{sqlstate} =~ /^LG01[01]$/ : $r->{out} ne '', 'a character that it cannot hold') or diag($r->{err});

$gw->no_crash_ok;
done_testing();
