# What a model cannot take: what is wanted is left out and named, what is required is not.
use strict;
use warnings;
use utf8;

use FindBin;
use JSON::PP;
use Test::More;

use lib $FindBin::Bin;
use DialectTest qw(row chat request_of tool);
use LlmGateway qw(error_ok literal rows);

my $json = JSON::PP->new->canonical->allow_nonref;
my $gw = LlmGateway->new(name => 'degraded');
my $fake = $gw->fake;
my $s = $gw->session;
DialectTest::use_session($gw, $s);
my $root = 'http://' . $fake->host . ':' . $fake->port;

my %url = (openai => $fake->url, azure => $root, anthropic => "$root/anthropic", gemini => $root, ollama => $root);
my @kinds = sort keys %url;
my @sampling = qw(temperature top_p top_k min_p presence_penalty frequency_penalty);
my %hints = (
	top_p             => 0.5,
	top_k             => 3,
	min_p             => 0.1,
	seed              => 7,
	presence_penalty  => 1,
	frequency_penalty => 1,
	reasoning_effort  => 'low',
	verbosity         => 'low',
	user              => 'u');
my $schema = { type => 'object', properties => { city => { type => 'string' } }, required => ['city'], additionalProperties => JSON::PP::false };
my $GOOD = '{"city": "Oslo"}';
my @tools = (tool('f', parameters => { type => 'object', properties => { x => { type => 'string' } } }));

$gw->sql('UPDATE llm_error_policies SET max_retries = 0');
$gw->add_provider($_, $url{$_}, { kind => "'$_'" }) for @kinds;
$gw->add_models($_, qw(m old other)) for @kinds;
$gw->sql(q{SELECT llm_add_provider('mock')});

# The row of llm_complete_detail; params and others as SQL expressions or, params, a hash.
sub detail
{
	my ($model, %args) = @_;
	$args{params} = literal($json->encode($args{params})) if ref $args{params};
	my $prompt = literal(delete $args{prompt} // 'hi');
	return row("llm_complete_detail($prompt, model => " . literal($model) . join('', map { ", $_ => $args{$_}" } sort keys %args) . ')');
}

# What became of its attempts, as the ledger has it.
sub attempts
{
	my ($row) = @_;
	return join ' ', map { $_->{error_class} // 'ok' } rows($s, "SELECT error_class FROM llm_attempts WHERE request_id = $row->{request_id} ORDER BY attempt");
}

sub refusal { my ($body, $status) = @_; return { status => $status // 400, body => $body } }

sub openai_error { my ($message, $param, $code) = @_; return refusal({ error => { message => $message, type => 'invalid_request_error', param => $param, code => $code } }) }

# What a session has learned lasts until the configuration is read anew.
sub forget { $gw->sql(q{UPDATE llm_models SET weight = weight WHERE provider = 'mock'}); return }

# What a dialect has no words for

my %lacks = (
	openai    => undef,
	azure     => [qw(top_k min_p)],
	anthropic => [qw(min_p seed presence_penalty frequency_penalty reasoning_effort verbosity)],
	gemini    => [qw(min_p verbosity user)],
	ollama    => [qw(verbosity user)],
	mock      => ['reasoning_effort']);    # whose models say that they have temperature, and not that they reason
for my $kind (@kinds, 'mock')
{
	my $model = $kind eq 'mock' ? 'mock/mock-standard' : "$kind/m";
	my $row = detail($model);
	is($row->{degraded}, undef, "$kind: nothing given, nothing left out");
	my $requests = $gw->requests(sub { $row = detail($model, temperature => 0.5, params => \%hints) });
	is_deeply($row->{degraded}, $lacks{$kind}, 'what it has no words for');
	is($row->{attempts}, 1, 'known beforehand');
	next if $kind eq 'mock';
	is($requests->[0]{status}, 200, 'and the rest is sent');
	my $sent = $json->encode($requests->[0]{body});
	like($sent, qr/"temperature":0.5/, 'the temperature, for one');
	unlike($sent, qr/"\Q$_\E":/, "not $_") for @{ $lacks{$kind} // [] };
}
is(detail('anthropic/m', params => { top_k => -1 })->{degraded}, undef, 'a top_k that says nothing is not missed');
is(detail('azure/m', params => { top_k => 5, extra => { top_k => 6 } })->{degraded}, undef, 'nor what the caller writes into the body');

my $row;
for my $case ([ '"required"', ['tool_choice'] ], [ $json->encode({ type => 'function', function => { name => 'f' } }), ['tool_choice'] ], [ '"auto"', undef ], [ '"none"', undef ])
{
	is_deeply(chat('hi', model => 'ollama/m', tools => \@tools, tool_choice => $case->[0])->{degraded}, $case->[1], "Ollama, tool_choice $case->[0]");
}
is(chat('hi', model => 'openai/m', tools => \@tools, tool_choice => '"required"')->{degraded}, undef, 'OpenAI has it');

# What capabilities say

sub able { my ($words) = @_; $gw->sql("UPDATE llm_models SET capabilities = " . literal($words) . " WHERE provider = 'openai' AND name = 'm'"); return }

my $request;
able('{chat}');
$request = request_of(sub { $row = detail('openai/m', temperature => 0.5, params => \%hints) });
is_deeply($row->{degraded}, [ @sampling, 'reasoning_effort' ], 'a model without temperature and reasoning') or diag(explain($row));
is_deeply([ grep { exists $request->{body}{$_} } @sampling, 'reasoning_effort' ], [], 'is sent none of it');
is_deeply([ @{ $request->{body} }{qw(seed verbosity user)} ], [ 7, 'low', 'u' ], 'but the rest');
able('{chat,temperature}');
is_deeply(detail('openai/m', temperature => 0.5, params => \%hints)->{degraded}, ['reasoning_effort'], 'with temperature');
able('{chat,temperature,reasoning}');
is(detail('openai/m', temperature => 0.5, params => \%hints)->{degraded}, undef, 'with both');
$request = request_of(sub { $row = chat('hi', model => 'openai/m', tools => \@tools, tool_choice => '"none"') });
is_deeply($row->{degraded}, ['tools'], 'tools that are not to be called');
ok(!exists $request->{body}{$_}, "no $_") for qw(tools tool_choice);
$row = chat('hi', model => 'openai/m', tools => \@tools);
is($row->{error_class}, 'no_candidate', 'others are required');
like($row->{error_message}, qr/lacks tools/, 'which is said');
$row = chat([
	{ role => 'user', content => 'x' }, { role => 'assistant', tool_calls => [ { id => 'a', type => 'function', function => { name => 'f', arguments => '{}' } } ] },
	{ role => 'tool', tool_call_id => 'a', content => 'y' } ], model => 'openai/m', tools => \@tools, tool_choice => '"none"');
is($row->{error_class}, 'no_candidate', 'so are those of a conversation that has used them');
able(undef);

# "stop" is required

for my $case ([ 'anthropic', ["\n"], qr/kind "anthropic" takes no "stop" of white space only/ ],
	[ 'gemini', [qw(a b c d e f)], qr/kind "gemini" takes at most 5 "stop" texts/ ])
{
	my ($kind, $stop, $reason) = @$case;
	my $requests = $gw->requests(sub { $row = detail("$kind/m", params => { stop => $stop }) });
	is($row->{error_class}, 'no_candidate', "$kind: no candidate");
	like($row->{error_message}, $reason, 'the reason');
	is(scalar @$requests, 0, 'and no request');
	$gw->sql("INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('stop-$kind', '$kind/m', 1), ('stop-$kind', 'openai/m', 2)");
	$row = detail("stop-$kind", params => { stop => $stop });
	is_deeply([ @{$row}{qw(provider degraded)} ], [ 'openai', undef ], 'the next one answers');
}
is(detail('anthropic/m', params => { stop => 'x' })->{response}, 'echo: hi', 'any other it takes');
is(detail('gemini/m', params => { stop => [qw(a b c d e)] })->{response}, 'echo: hi', 'and as many');
is(detail('mock/mock-standard', prompt => 'one two', params => { stop => [ 'wo', 'zzz' ] })->{response}, 'mock reply to: one t', 'the mock stops');

# Refusals as they were recorded: asked once more without

my $one = [qw(temperature)];
for my $case (
	# kind, what is refused, how, whether it is remembered
	[ 'openai', $one, openai_error("Unsupported parameter: 'temperature' is not supported with this model.", 'temperature', 'unsupported_parameter'), 1 ],
	[ 'openai', $one, openai_error("Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.", 'temperature', 'unsupported_value'), 1 ],
	[ 'openai', ['reasoning_effort'], openai_error("Unsupported value: 'reasoning_effort' does not support 'low' with this model. Supported values are: 'none' and 'high'.", 'reasoning_effort', 'unsupported_value'), 0 ],
	[ 'openai', ['top_k'], openai_error('Unrecognized request argument supplied: top_k'), 1 ],
	[ 'openai', ['user'], openai_error('Unrecognized request argument supplied: user'), 1 ],
	[ 'openai', ['seed'], refusal({ object => 'error', message => { detail => [ { type => 'extra_forbidden', loc => [ 'body', 'seed' ], msg => 'Extra inputs are not permitted', input => 7 } ] }, type => 'invalid_request_error' }, 422), 1 ],
	[ 'openai', ['presence_penalty'], refusal({ code => 'Client specified an invalid argument', error => 'Argument not supported on this model: presencePenalty' }), 1 ],
	[ 'openai', ['verbosity'], refusal({ error => { message => 'unknown field `verbosity`, expected one of `model`, `messages`, `temperature`, `top_p`' } }, 422), 1 ],
	[ 'azure', ['seed'], openai_error('Unrecognized request argument supplied: seed'), 1 ],
	[ 'anthropic', $one, refusal({ type => 'error', error => { type => 'invalid_request_error', message => '`temperature` is deprecated for this model.' } }), 1 ],
	[ 'anthropic', ['top_p'], refusal({ type => 'error', error => { type => 'invalid_request_error', message => '`temperature` and `top_p` cannot both be specified for this model. Please use only one.' } }), 0 ],
	[ 'anthropic', ['user'], refusal({ type => 'error', error => { type => 'invalid_request_error', message => 'metadata: Extra inputs are not permitted' } }), 1 ],
	[ 'gemini', [qw(presence_penalty frequency_penalty)], refusal({ error => { code => 400, message => 'Penalty is not enabled for models/m', status => 'INVALID_ARGUMENT' } }), 1 ],
	[ 'gemini', ['reasoning_effort'], refusal({ error => { code => 400, message => 'Thinking level is not supported for this model.', status => 'INVALID_ARGUMENT' } }), 1 ],
	[ 'gemini', ['top_k'], refusal({ error => { code => 400, message => q{Invalid JSON payload received. Unknown name "topK" at 'generation_config': Cannot find field.}, status => 'INVALID_ARGUMENT' } }), 1 ],
	[ 'ollama', ['reasoning_effort'], refusal({ error => '"m" does not support thinking' }), 1 ])
{
	my ($kind, $names, $step, $remembered) = @$case;
	my $what = "$kind: " . substr $json->encode($step->{body}), 0, 100;
	my %given = (temperature => 0.5, params => { map { $_ => $hints{$_} } grep { my $p = $_; !grep { $_ eq $p } @{ $lacks{$kind} // [] } } keys %hints });
	my %is_refused = map { $_ => 1 } @$names;
	forget();
	$fake->script('m', $step);
	my $requests = $gw->requests(sub { $row = detail("$kind/m", %given) });
	is($row->{response}, 'echo: hi', $what) or diag($row->{error_message});
	is_deeply($row->{degraded}, $names, 'names');
	is(attempts($row), 'invalid_request ok', 'two attempts');
	is_deeply([ @{$row}{qw(attempts fallback)} ], [ 2, JSON::PP::false ], 'of one candidate');
	my ($first, $second) = map { $_->{body} } @$requests;
	isnt($json->encode($second), $json->encode($first), 'the second is another request');
	$request = request_of(sub { $row = detail("$kind/m", %given) }) if $remembered;
	if ($remembered)
	{
		is_deeply($request->{body}, $second, 'which is remembered');
		is_deeply($row->{degraded}, $names, 'and named again');
		is(detail("$kind/m")->{degraded}, undef, 'not where it was not given');
		$request = request_of(sub { $row = detail("$kind/other", %given) });
		is($row->{degraded}, undef, 'nor of another model');
	}
	else
	{
		$request = request_of(sub { $row = detail("$kind/m", %given) });
		is_deeply($request->{body}, $first, 'which is not remembered');
	}
}

# what was learned is forgotten with the configuration
forget();
$gw->add_models('openai', 'refuses-temperature');
is(detail('openai/refuses-temperature', temperature => 1)->{attempts}, 2, 'refused');
is(detail('openai/refuses-temperature', temperature => 1)->{attempts}, 1, 'learned');
forget();
is(detail('openai/refuses-temperature', temperature => 1)->{attempts}, 2, 'forgotten');

# more than one, one after the other, also with the token limit's name; and a bound
$gw->add_models('openai', 'refuses-seed+refuses-top_p+needs-max-completion-tokens', join('+', map { "refuses-$_" } qw(seed top_p user verbosity top_k)));
$row = detail('openai/refuses-seed+refuses-top_p+needs-max-completion-tokens', max_tokens => 50, params => { seed => 1, top_p => 0.5, user => 'u' });
is_deeply($row->{degraded}, [qw(top_p seed)], 'two, and a limit by another name');
is($row->{attempts}, 4, 'one at a time');
my %five = map { $_ => $hints{$_} } qw(seed top_p user verbosity top_k);
$row = detail('openai/refuses-seed+refuses-top_p+refuses-user+refuses-verbosity+refuses-top_k', params => \%five);
is($row->{error_class}, 'invalid_request', 'five are too many');
is($row->{attempts}, 5, 'asked again four times');
is($row->{degraded}, undef, 'no answer, nothing to name');

# who refuses it all the same is not asked for ever
$fake->script('m', { %{ openai_error("Unsupported parameter: 'temperature' is not supported with this model.", 'temperature') }, repeat => 'forever' });
my $requests = $gw->requests(sub { $row = detail('openai/m', temperature => 0.5) });
is(scalar @$requests, 2, 'refused without it, too: not asked for ever');
is($row->{error_class}, 'invalid_request', 'an error');
$fake->script('m');
forget();
$fake->script('m', openai_error("Cannot answer 'temperature is not supported'"));
$requests = $gw->requests(sub { $row = detail('openai/m', params => { seed => 1 }) });
is(scalar @$requests, 1, 'nor for what was not sent');
is($row->{error_class}, 'invalid_request', 'an error, too');
is(detail('openai/m', temperature => 0.5)->{degraded}, undef, 'and nothing was learned from it');

# A wrong value is the caller's error, but not where another model took it

my $range = refusal({ type => 'error', error => { type => 'invalid_request_error', message => 'temperature: range: 0..1' } });
$fake->script('m', $range);
$requests = $gw->requests(sub { error_ok($s->run(q{SELECT llm_complete('hi', model => 'anthropic/m', temperature => 2)}),
	{ sqlstate => 'LG008', message => qr/temperature: range: 0\.\.1/ }, 'a value out of range') });
is(scalar @$requests, 1, 'not asked again');
$gw->sql(q{INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('warm', 'openai/old', 1), ('warm', 'anthropic/m', 2), ('warm', 'ollama/m', 3)});
$fake->script('old', 'status-500');
$fake->script('m', $range);
$row = detail('warm', temperature => 2, params => { seed => 1 });
is_deeply([ @{$row}{qw(provider degraded)} ], [ 'anthropic', [qw(temperature seed)] ], 'a fallback is asked without it') or diag(explain($row));
is(attempts($row), 'server_error invalid_request ok', 'three attempts');
is_deeply(detail('anthropic/m', temperature => 1)->{degraded}, undef, 'which is not remembered');

# What is required and refused: an error of the first, of a fallback not

my $stop = openai_error("Unsupported parameter: 'stop' is not supported with this model.", 'stop', 'unsupported_parameter');
$fake->script('old', $stop);
$requests = $gw->requests(sub { error_ok($s->run(q{SELECT llm_complete('hi', model => 'warm', params => '{"stop": "x"}')}),
	{ sqlstate => 'LG008', message => qr/'stop' is not supported/ }, 'a required one, refused by the first') });
is(scalar @$requests, 1, 'neither asked again nor somebody else');
$fake->script('old', 'status-500');
$fake->script('m', refusal({ type => 'error', error => { type => 'invalid_request_error', message => 'stop_sequences: not supported' } }));
$row = detail('warm', temperature => 1, params => { stop => 'x', seed => 1, verbosity => 'low' });
is_deeply([ @{$row}{qw(provider degraded)} ], [ 'ollama', ['verbosity'] ], 'refused by a fallback: the next one, and what that one was given without');
is(attempts($row), 'server_error invalid_request ok', 'each asked once');
$fake->script('m', refusal({ error => 'registry.ollama.ai/library/gemma3:latest does not support tools' }));
$row = chat('hi', model => 'ollama/m', tools => \@tools);
is_deeply([ @{$row}{qw(error_class attempts)} ], [ 'invalid_request', 1 ], 'tools');
$fake->script('m', openai_error('tool_choice is not supported with this model', 'tool_choice'));
$row = chat('Oslo', model => 'openai/m', tools => \@tools, tool_choice => '"required"');
is_deeply([ @{$row}{qw(degraded attempts)} ], [ ['tool_choice'], 2 ], 'but not a choice among them') or diag(explain($row));

# Batches: every row, also one that shares an answer

forget();
my @rows = rows($s, q{SELECT idx, attempts, degraded, cached FROM llm_complete_batch(ARRAY['a', 'b', 'a', NULL, 'c'],
	model => 'openai/refuses-temperature', temperature => 0.5, max_concurrency => 1)});
is_deeply([ map { $_->{degraded} } @rows ], [ ('["temperature"]') x 3, undef, '["temperature"]' ], 'a batch');
is_deeply([ map { $_->{attempts} } @rows ], [ 2, 1, 0, undef, 1 ], 'learned by its first call');
is($rows[2]{cached}, 'true', 'one row is shared');
forget();
@rows = rows($s, q{SELECT degraded, error_class FROM llm_complete_batch(ARRAY(SELECT 'p' || i FROM generate_series(1, 40) i),
	model => 'openai/refuses-temperature', temperature => 0.5, max_concurrency => 20)});
is(scalar(grep { !defined $_->{error_class} && $_->{degraded} eq '["temperature"]' } @rows), 40, 'many at once');

# Other functions

forget();
is($s->value(q{SELECT string_agg(t, '') FROM (SELECT llm_stream('hi', model => 'openai/refuses-temperature', temperature => 0.5) AS t) q}), 'echo: hi', 'llm_stream');
forget();
$gw->add_models('openai', 'refuses-user');
like($s->value(q{SELECT llm_embed('hi', model => 'openai/refuses-user', params => '{"user": "u"}')}), qr/^\{/, 'llm_embed');

# cancelled in the second attempt
forget();
$fake->script('m', openai_error("Unsupported parameter: 'seed' is not supported with this model.", 'seed'), 'silent');
my $before = $fake->stats->{requests};
$s->start(q{SELECT llm_complete('hi', model => 'openai/m', params => '{"seed": 1}')});
ok($fake->wait_for_stats(sub { $_[0]{requests} == $before + 2 }), 'asked again');
$gw->wait_in_call($s);
$gw->admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
is($s->finish->{sqlstate}, '57014', 'cancelled');
is(detail('openai/m', params => { seed => 1 })->{degraded}, undef, 'nothing is learned from a refusal without an answer');
is($s->value(q{SELECT string_agg(coalesce(a.error_class, '-'), ' ' ORDER BY a.attempt) FROM llm_requests r JOIN llm_attempts a USING (request_id)
	WHERE r.status = 'cancelled'}), 'invalid_request cancelled', 'both attempts are in the ledger');

# A schema for which words will do

sub json_of
{
	my ($model, %args) = @_;
	return $s->run('SELECT llm_complete_json(' . literal("Copy $GOOD") . ', schema => ' . literal($json->encode($schema)) . ', model => ' . literal($model)
		  . join('', map { ", $_ => $args{$_}" } sort keys %args) . ')');
}
my %refused = (
	openai => [
		openai_error('This response_format type is unavailable now', undef, 'invalid_request_error'),
		openai_error("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.", 'response_format'),
		openai_error('This model does not support response format `json_schema`. See supported models at https://example.com'),
		openai_error(q{'response_format.type' : value is not one of the allowed values ['text','json_object']}),
		refusal('Failed to deserialize the JSON body into the target type: response_format: response_format.type `json_schema` is unavailable now at line 1 column 9', 422)
	],
	anthropic => [ refusal({ type => 'error', error => { type => 'invalid_request_error', message => 'tool_choice: type "tool" and "any" are not supported for this model' } }) ],
	gemini    => [ refusal({ error => { code => 400, message => q{Invalid JSON payload received. Unknown name "responseJsonSchema" at 'generation_config': Cannot find field.}, status => 'INVALID_ARGUMENT' } }) ],
	ollama    => [ refusal({ error => 'json: cannot unmarshal object into Go struct field ChatRequest.format: "format" is not supported' }) ]);
for my $kind (sort keys %refused)
{
	for my $step (@{ $refused{$kind} })
	{
		forget();
		$fake->script('m', $step, { text => $GOOD });
		my $asked = $fake->stats->{requests};
		my $r = json_of("$kind/m", system_prompt => q{'Be brief.'});
		is($r->{out}, $GOOD, "$kind, JSON: " . substr $json->encode($step->{body}), 0, 90) or diag($r->{err});
		my @asked = @{ $fake->asked($asked) };
		is(scalar @asked, 2, 'two requests');
		like($asked[1]{messages}[0]{text}, qr/^Be brief\.\n\nAnswer with one JSON document only/, 'told of it in words');
		is($asked[1]{schema}, undef, 'and only so');
		$fake->script('m', { text => $GOOD });
		is(json_of("$kind/m")->{out}, $GOOD, 'again') or diag($r->{err});
		@asked = @{ $fake->asked($asked + 2) };
		is(scalar @asked, 1, 'at once');
		is($asked[0]{schema}, undef, 'in words');
	}
}
forget();
$fake->script('m', $refused{openai}[0]);
error_ok(json_of('openai/m', degrade => 'false'), { sqlstate => 'LG008', message => qr/response_format/ }, 'degrade => false: required');
$fake->script('m', $refused{openai}[0]);
is(chat('hi', model => 'openai/m', schema => $schema)->{error_class}, 'invalid_request', 'llm_chat requires it, too');
$fake->script('m', openai_error("Invalid schema for response_format 'answer': too deep.", 'response_format'), { text => $GOOD });
is(json_of('openai/m')->{out}, $GOOD, 'only this schema');
my $asked = $fake->stats->{requests};
$fake->script('m', { text => $GOOD });
json_of('openai/m');
ok($fake->asked($asked)->[0]{schema}, 'which is not remembered');

done_testing();
