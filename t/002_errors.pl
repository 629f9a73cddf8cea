# Providers that fail, in every way the fake knows: what the caller is told, how often the provider
# is asked, who is asked next, and that the session goes on.  And that a key is never seen.
use strict;
use warnings;

use FindBin;
use Socket qw(pack_sockaddr_in inet_aton);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY error_ok literal);

$ENV{EMPTY_API_KEY} = '';
$ENV{BROKEN_API_KEY} = "broken\nkey-Xq7";
$ENV{SECRET_TOKEN} = 'not-for-the-gateway-Zz3';
delete $ENV{UNSET_API_KEY};

my $gw = LlmGateway->new(name => 'errors');

# Not from the start on: then PostgreSQL itself logs its environment, keys and all (at debug3).
$gw->node->append_conf('postgresql.conf', "log_min_messages = debug5\nlog_statement = 'all'\n");
$gw->node->reload;
my $fake = $gw->fake;
my $s = $gw->session;
my $r;
my $everything = '';    # that a session has been told

sub run
{
	my ($sql, $session) = @_;

	# that a key was refused, or no credit left, is remembered: that is a test of its own
	$gw->forget;
	my $result = ($session // $s)->run($sql);
	$everything .= "$result->{out}\n$result->{err}\n";
	return $result;
}

# What the session still can do.
sub still_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(run(q{SELECT llm_complete('hi', model => 'gpt-4o')})->{out}, 'echo: hi', "$name: the next call works");
}

# Closes the connections that are kept for the next call.
sub renew_connections
{
	$fake->down;
	$fake->up;
	return;
}

# Back-off need not be long here; how long it is, is a test of its own.
$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10)');

# Every behaviour: SQLSTATE, class, requests made, pattern of the message.

my @cases = (
	# what a status says
	[ 'status-400', 'LG008', 'invalid_request', 1, qr/HTTP 400: Invalid request\./ ],
	[ 'status-401', 'LG009', 'auth',            1, qr/HTTP 401: Incorrect API key provided/ ],
	[ 'status-402', 'LG012', 'quota',           1, qr/HTTP 402/ ],
	[ 'status-403', 'LG009', 'auth',            1, qr/HTTP 403: Country/ ],
	[ 'status-404', 'LG008', 'not_found',       1, qr/HTTP 404: The model `status-404` does not exist/ ],
	[ 'status-408', 'LG003', 'timeout',         2, qr/HTTP 408/ ],
	[ 'status-409', 'LG008', 'invalid_request', 1, qr/HTTP 409/ ],
	[ 'status-413', 'LG007', 'context_length',  1, qr/HTTP 413/ ],
	[ 'status-418', 'LG008', 'invalid_request', 1, qr/HTTP 418/ ],
	[ 'status-422', 'LG008', 'invalid_request', 1, qr/HTTP 422/ ],
	[ 'status-429', 'LG002', 'rate_limit',      2, qr/HTTP 429: Rate limit reached/ ],
	[ 'status-500', 'LG004', 'server_error',    2, qr/HTTP 500: The server had an error/ ],
	[ 'status-501', 'LG008', 'invalid_request', 1, qr/HTTP 501/ ],
	[ 'status-502', 'LG004', 'server_error',    2, qr/HTTP 502/ ],
	[ 'status-503', 'LG004', 'overloaded',      2, qr/HTTP 503: The engine is currently overloaded/ ],
	[ 'status-504', 'LG004', 'server_error',    2, qr/HTTP 504/ ],
	[ 'status-529', 'LG004', 'overloaded',      2, qr/HTTP 529/ ],

	# what a body says
	[ 'context-length',     'LG007', 'context_length', 1, qr/maximum context length is 8192 tokens/ ],
	[ 'content-policy',     'LG006', 'content_policy', 1, qr/safety system/ ],
	[ 'content-policy-200', 'LG006', 'content_policy', 1, qr/content filter/ ],
	[ 'refusal',            'LG006', 'content_policy', 1, qr/I'm sorry, I can't assist/ ],
	[ 'error-in-200',       'LG004', 'server_error',   2, qr/The server had an error/ ],
	[ 'error-in-stream',    'LG004', 'server_error',   2, qr/The server had an error/ ],
	[ 'html',               'LG010', 'malformed',      2, qr/not JSON|HTML|invalid/i ],
	[ 'html-502',           'LG004', 'server_error',   2, qr/HTTP 502 \(HTML body\)/ ],
	[ 'html-403',           'LG009', 'auth',           1, qr/HTTP 403 \(HTML body\)/ ],
	[ 'redirect',           'LG008', 'not_found',      1, qr{HTTP 302: redirect not followed: it leads to "/redirected/chat/completions"} ],
	[ 'require-key-other',  'LG009', 'auth',           1, qr/Incorrect API key/ ],
	[ 'leak-key',           'LG009', 'auth',           1, qr/Incorrect API key provided: \*{7,}\./ ],

	# bodies as their senders write them
	[ 'error-body-openai-401',            'LG009', 'auth',            1, qr/Incorrect API key/ ],
	[ 'error-body-openai-404-model',      'LG008', 'not_found',       1, qr/does not exist or you do not have access/ ],
	[ 'error-body-openai-429-rate',       'LG002', 'rate_limit',      2, qr/try again in 120ms/ ],
	[ 'error-body-openai-429-quota',      'LG012', 'quota',           1, qr/exceeded your current quota/ ],
	[ 'error-body-openai-429-credit',     'LG012', 'quota',           1, qr/credit balance is exhausted/ ],
	[ 'error-body-openai-503-slow-down',  'LG004', 'overloaded',      2, qr/Please slow down/ ],
	[ 'error-body-llamacpp-context',      'LG007', 'context_length',  1, qr/exceeds the available context size/ ],
	[ 'error-body-llamacpp-batch',        'LG007', 'context_length',  1, qr/input \(901 tokens\) is too large to process/ ],
	[ 'error-body-llamacpp-no-embeddings', 'LG008', 'invalid_request', 1, qr/Start it with `--embeddings`/ ],
	[ 'error-body-llamacpp-image',        'LG008', 'invalid_request', 1, qr/image input is not supported/ ],
	[ 'error-body-llamacpp-schema',       'LG008', 'invalid_request', 1, qr/JSON schema error at #/ ],
	[ 'error-body-llamacpp-loading',      'LG004', 'overloaded',      2, qr/Loading model/ ],
	[ 'error-body-vllm-404',              'LG008', 'not_found',       1, qr/does not exist/ ],
	[ 'error-body-vllm-toplevel',         'LG007', 'context_length',  1, qr/maximum context length is 4096/ ],
	[ 'error-body-scaleway-quota',        'LG002', 'rate_limit',      2, qr/INSUFFICIENT QUOTA: You exceeded/ ],
	[ 'error-body-fastapi-detail',        'LG008', 'invalid_request', 1, qr/HTTP 400: Bad Request/ ],
	[ 'error-body-fastapi-validation',    'LG008', 'invalid_request', 1, qr/messages.*Field required/ ],
	[ 'error-body-string-error',          'LG008', 'not_found',       1, qr/model 'error-body-string-error' not found/ ],
	[ 'error-body-groq-413',              'LG002', 'rate_limit',      2, qr/Request too large/ ],
	[ 'error-body-moonshot-429-quota',    'LG012', 'quota',           1, qr/check your plan and billing details/ ],
	[ 'error-body-groq-498',              'LG002', 'rate_limit',      2, qr/Flex tier capacity exceeded/ ],
	[ 'error-body-azure-content',         'LG006', 'content_policy',  1, qr/content management policy/ ],
	[ 'error-body-plain-text',            'LG004', 'overloaded',      2, qr/upstream connect error/ ],

	# answers that are not whole
	[ 'malformed',    'LG010', 'malformed', 2, qr/event of the stream/ ],
	[ 'cut',          'LG010', 'malformed', 2, qr/ended before it was complete, after \d+ bytes/ ],
	[ 'cut-short',    'LG004', 'network',   2 ],
	[ 'reset-before', 'LG004', 'network',   2 ],
	[ 'reset-mid',    'LG004', 'network',   2 ],
	[ 'close-before', 'LG004', 'network',   2 ],
	[ 'deep-100000',  'LG010', 'malformed', 2, qr/deep/ ],
	[ 'nul',          'LG010', 'malformed', 1, qr/character that the database/ ],
	[ 'bad-utf8',     'LG010', 'malformed', 2, qr/UTF-8/ ],
	[ 'huge-2',       'LG010', 'malformed', 1, qr/larger than 1024 kB \(llm_gateway\.max_response_size\)/ ],
);
$gw->add_models('fake', 'gpt-4o', 'deep-50', 'leak-key-in-answer', map { $_->[0] } @cases);
$s->run(q{SET llm_gateway.max_response_size = '1MB'});


# where a close comes without a word, the next request may be sent before it is seen
$fake->script('cut', { behaviour => 'cut', headers => { connection => 'close' }, repeat => 'forever' });

for my $case (@cases)
{
	my ($model, $sqlstate, $class, $count, $message) = @$case;

	# what happens on a connection that was used before is a test of its own
	renew_connections();
	my $requests = $gw->requests(sub { $r = run(qq{SELECT llm_complete('Hello', model => '$model')}) });
	is(scalar @$requests, $count, "$model: requests");
	error_ok(
		$r,
		{
			sqlstate => $sqlstate,
			message  => $count > 1 ? qr{^all $count attempts failed, the last one: model "\Q$model\E" of provider "fake": .}
			: qr{^model "\Q$model\E" of provider "fake": .},
			detail => qr{\A(?:fake/\Q$model\E: $class after \d+ ms: \S.*(?:\n|\z)){$count}\z},
			hint   => qr/\w.*\./
		},
		"$model: error");
	like($r->{message} // '', $message, "$model: message") if $message;
	$r = run(qq{SELECT error_class, attempts, response IS NULL, error_message <> '' FROM llm_complete_detail('Hello', model => '$model')});
	is($r->{out}, "$class|$count|t|t", "$model: llm_complete_detail does not raise");
	still_ok($model);
}
is($fake->stats->{internal_errors}, 0, 'the fake itself is sound');
ok(!(grep { $_->{path} =~ /redirected/ } @{ $fake->journal }), 'no redirect was followed');
$s->run('RESET llm_gateway.max_response_size');
is(run(q{SELECT length(llm_complete('Hello', model => 'huge-2'))})->{out}, 2 << 20, 'within max_response_size');
is(run(q{SELECT llm_complete('Hello', model => 'deep-50')})->{out}, 'echo: Hello', 'unknown fields may be nested');

# Not streamed

$gw->sql(q{UPDATE llm_providers SET options = '{"stream": false}'});
for my $case (
	[ 'error-in-stream',    'LG004' ],
	[ 'error-in-200',       'LG004' ],
	[ 'malformed',          'LG010' ],
	[ 'cut',                'LG010' ],
	[ 'cut-short',          'LG004' ],
	[ 'content-policy-200', 'LG006' ],
	[ 'refusal',            'LG006' ],
	[ 'deep-100000',        'LG010' ],
	[ 'nul',                'LG010' ],
	[ 'bad-utf8',           'LG010' ],
	[ 'html',               'LG010' ])
{
	my ($model, $sqlstate) = @$case;
	error_ok(run(qq{SELECT llm_complete('Hello, how are you?', model => '$model')}), { sqlstate => $sqlstate }, "$model, not streamed");
	still_ok("$model, not streamed");
}
$gw->sql('UPDATE llm_providers SET options = NULL');

# Retries, as the policy says

$fake->script('gpt-4o', 'status-500', 'status-500');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 3 WHERE error_class = 'server_error'});
is( run(q{SELECT response, attempts, fallback FROM llm_complete_detail('hi', model => 'gpt-4o')})->{out},
	'echo: hi|3|f', 'the third attempt succeeds');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'server_error'});
my $seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'status-500')}) });
is(scalar @$seen, 1, 'max_retries = 0');
error_ok($r, { sqlstate => 'LG004' }, 'max_retries = 0: error');
$gw->sql(q{INSERT INTO llm_error_policies (error_class, provider, max_retries) VALUES ('server_error', 'fake', 2)});
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'status-500')}) });
is(scalar @$seen, 3, q{a policy of the provider's own});
$gw->sql(q{DELETE FROM llm_error_policies WHERE provider = 'fake'; UPDATE llm_error_policies SET max_retries = 1 WHERE error_class = 'server_error'});

# Back-off, and what the provider says about it

sub gap
{
	my ($requests) = @_;
	return @$requests == 2 ? $requests->[1]{time} - $requests->[0]{time} : -1;
}
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 500 WHERE error_class = 'overloaded'});
$fake->script('gpt-4o', 'status-503');
cmp_ok(gap($gw->requests(sub { run(q{SELECT llm_complete('hi', model => 'gpt-4o')}) })), '>=', 0.39, 'backoff_ms, less at most a fifth');
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 10 WHERE error_class = 'overloaded'});
$fake->script('gpt-4o', 'retry-after-1+status-429');
cmp_ok(gap($gw->requests(sub { run(q{SELECT llm_complete('hi', model => 'gpt-4o')}) })), '>=', 0.98, 'Retry-After');
$fake->script('gpt-4o', 'retry-after-ms-400+status-503');
cmp_ok(gap($gw->requests(sub { run(q{SELECT llm_complete('hi', model => 'gpt-4o')}) })), '>=', 0.38, 'retry-after-ms');
$fake->script('gpt-4o', 'error-body-openai-429-rate');
cmp_ok(gap($gw->requests(sub { run(q{SELECT llm_complete('hi', model => 'gpt-4o')}) })), '>=', 0.115, '"try again in 120ms"');
$fake->script('gpt-4o', 'retry-after-3600+status-429');
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'gpt-4o')}) });
is(scalar @$seen, 1, 'who asks for an hour is not waited for');
error_ok($r, { sqlstate => 'LG002' }, 'but an error');

# on_error

$s->run(q{SET llm_gateway.on_error = 'null'});
$r = run(q{SELECT llm_complete('hi', model => 'status-400') IS NULL});
is($r->{out}, 't', q{on_error = 'null': NULL});
is("$r->{notices}[0]{severity} $r->{notices}[0]{sqlstate}", 'WARNING LG008', 'with a warning');
$s->run('RESET llm_gateway.on_error');

# Fallback

$gw->add_provider('backup', $fake->url('/backup'));
$gw->add_models('backup', 'gpt-4o', 'status-400', 'status-500');
sub route
{
	my (@models) = @_;
	my $rank = 0;
	$gw->sql(q{DELETE FROM llm_routing_rules WHERE alias = 'route';} . join '',
		map { sprintf q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('route', %s, %d);}, literal($_), ++$rank } @models);
	return;
}
sub paths
{
	my ($requests) = @_;
	return join ' ', map { $_->{path} =~ m{^/backup/} ? "backup/$_->{model}" : "fake/$_->{model}" } @$requests;
}
for my $case (
	[ 'status-429',                  2 ],
	[ 'status-401',                  1 ],
	[ 'status-408',                  2 ],
	[ 'reset-before',                2 ],
	[ 'status-500',                  2 ],
	[ 'status-503',                  2 ],
	[ 'malformed',                   2 ],
	[ 'cut',                         2 ],
	[ 'error-body-openai-429-quota', 1 ],
	[ 'status-404',                  1 ])
{
	my ($model, $count) = @$case;
	route("fake/$model", 'backup/gpt-4o');
	renew_connections();
	$seen = $gw->requests(sub { $r = run(q{SELECT response, provider, model, attempts, fallback, error_class FROM llm_complete_detail('hi', model => 'route')}) });
	is($r->{out}, 'echo: hi|backup|gpt-4o|' . ($count + 1) . '|t|', "$model falls back");
	is(paths($seen), "fake/$model " x $count . 'backup/gpt-4o', "$model: who is asked");
}
for my $model (qw(status-400 content-policy content-policy-200 refusal))
{
	route("fake/$model", 'backup/gpt-4o');
	$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'route')}) });
	error_ok($r, { sqlstate => $model eq 'status-400' ? 'LG008' : 'LG006' }, "$model stops");
	is(paths($seen), "fake/$model", "$model: nobody else is asked");
}
route('fake/status-404', 'backup/status-400', 'backup/gpt-4o');
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'route')}) });
is($r->{out}, 'echo: hi', 'an invalid_request of a fallback goes on');
is(paths($seen), 'fake/status-404 backup/status-400 backup/gpt-4o', 'to the next one');

$gw->sql(q{UPDATE llm_error_policies SET fallback = false WHERE error_class = 'auth'});
route('fake/status-401', 'backup/gpt-4o');
error_ok(run(q{SELECT llm_complete('hi', model => 'route')}), { sqlstate => 'LG009' }, 'fallback = false');
$gw->sql(q{UPDATE llm_error_policies SET fallback = true WHERE error_class = 'auth'});

# every attempt failed: of one class, of one SQLSTATE, of several
route('fake/status-500', 'backup/status-500');
error_ok(
	run(q{SELECT llm_complete('hi', model => 'route')}),
	{
		sqlstate => 'LG004',
		message  => qr{^all 4 attempts failed, the last one: model "status-500" of provider "backup"},
		detail   => qr{\A(?:fake/status-500: server_error after \d+ ms: .*\n){2}backup/status-500: .*\nbackup/status-500: .*\z}
	},
	'all failed alike');
route('fake/status-429', 'backup/status-500');
error_ok(run(q{SELECT llm_complete('hi', model => 'route')}), { sqlstate => 'LG004', hint => qr/DETAIL/ }, 'failed in different ways');
is(run(q{SELECT error_class FROM llm_complete_detail('hi', model => 'route')})->{out}, 'all_failed', 'all_failed');
route('fake/status-404', 'backup/status-400');
error_ok(run(q{SELECT llm_complete('hi', model => 'route')}), { sqlstate => 'LG008' }, 'different classes of one SQLSTATE');

# a model's name is a pin: another provider of it may answer, another model not
$gw->sql(q{UPDATE llm_providers SET weight = 10 WHERE name = 'fake'});
$fake->script('gpt-4o', 'status-401');
$seen = $gw->requests(sub { $r = run(q{SELECT provider, fallback FROM llm_complete_detail('hi', model => 'gpt-4o')}) });
is($r->{out}, 'backup|t', 'another provider of the model');
is(paths($seen), 'fake/gpt-4o backup/gpt-4o', 'after the first');

# only a larger window helps a prompt that is too long
$gw->add_models('fake', 'small', { context_window => 4000, upstream_name => "'context-length'" });
$gw->add_models('backup', 'same', { context_window => 4000, upstream_name => "'gpt-4o'" });
$gw->add_models('backup', 'unknown', { upstream_name => "'gpt-4o'" });
$gw->add_models('backup', 'large', { context_window => 100000, upstream_name => "'gpt-4o'" });
route('fake/small', 'backup/same', 'backup/unknown', 'backup/large');
$r = run(q{SELECT model, attempts FROM llm_complete_detail('hi', model => 'route')});
is($r->{out}, 'large|2', 'context_length: to a larger window only');
route('fake/small', 'backup/same');
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'route')}) });
error_ok($r, { sqlstate => 'LG007' }, 'context_length: no larger window');
is(paths($seen), 'fake/context-length', 'context_length: a window of the same size is not tried');
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete(repeat('x', 30000), model => 'small')}) });
error_ok($r, { sqlstate => 'LG005', detail => qr/longer than its context window of 4000/ }, 'a prompt much too long');
is(scalar @$seen, 0, 'is not sent');

# Keys

is( run(q{SELECT llm_complete('Hello', model => 'leak-key-in-answer')})->{out},
	'your key is ' . '*' x length($KEY) . ', is it not?', 'a key in an answer is masked');
$gw->sql(q{SELECT llm_set_secret('stored', 'stored-key-Wq81-Lk20')});
for my $case (
	[ 'env:UNSET_API_KEY',  qr/environment variable "UNSET_API_KEY" is not set/ ],
	[ 'env:EMPTY_API_KEY',  qr/environment variable "EMPTY_API_KEY" is empty/ ],
	[ 'env:BROKEN_API_KEY', qr/environment variable "BROKEN_API_KEY" contains a control character/ ],
	[ 'secret:missing',     qr/secret "missing" does not exist/ ])
{
	my ($reference, $reason) = @$case;
	$gw->sql(sprintf q{UPDATE llm_providers SET api_key = %s WHERE name = 'fake'}, literal($reference));
	$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')}) });
	error_ok($r, { sqlstate => 'LG009', message => $reason, detail => qr{^fake/gpt-4o: auth, not tried: } }, $reference);
	is(scalar @$seen, 0, "$reference: no request");
	is(run(q{SELECT attempts, error_class FROM llm_complete_detail('hi', model => 'fake/gpt-4o')})->{out}, '0|auth', "$reference: no attempt");
	is(run(q{SELECT provider, attempts, fallback FROM llm_complete_detail('hi', model => 'gpt-4o')})->{out}, 'backup|1|t', "$reference: the next candidate is asked");
}
$gw->sql(q{UPDATE llm_providers SET api_key = 'env:TEST_API_KEY' WHERE name = 'fake'});
$s->run(q{SET llm_gateway.secret_env_pattern = 'OPENAI_*'});
error_ok(run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')}),
	{ sqlstate => 'LG009', message => qr/secret_env_pattern does not allow the environment variable "TEST_API_KEY"/ }, 'secret_env_pattern');
$s->run('RESET llm_gateway.secret_env_pattern');
$gw->sql(q{UPDATE llm_providers SET api_key = 'secret:stored' WHERE name = 'fake'});
$seen = $gw->requests(sub { run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')}) });
is($seen->[0]{headers}{authorization}, 'Bearer stored-key-Wq81-Lk20', 'a stored secret');
is(run(q{SELECT llm_complete('hi', model => 'leak-key-in-answer')})->{out}, 'your key is ' . '*' x 20 . ', is it not?', 'is masked too');
$gw->sql(q{SELECT llm_set_secret('stored', 'stored-key-Wq81-Lk20', allowed_host => 'api.example.com')});
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')}) });
error_ok($r, { sqlstate => 'LG009', message => qr/secret "stored" is for host "api.example.com" only/ }, 'a secret bound to another host');
is(scalar @$seen, 0, 'is not sent');
$gw->sql(q{UPDATE llm_providers SET api_key = NULL WHERE name = 'fake'});
$seen = $gw->requests(sub { run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')}) });
is($seen->[0]{headers}{authorization}, undef, 'no key, no header');
$gw->sql(q{UPDATE llm_providers SET api_key = 'env:TEST_API_KEY' WHERE name = 'fake'});

# Connections that cannot be made

$fake->down;
$r = run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')});
error_ok($r, { sqlstate => 'LG004', detail => qr{\A(?:fake/gpt-4o: network after \d+ ms: .*(?:\n|\z)){2}\z} }, 'connection refused');
$fake->up;
still_ok('connection refused');

# a connection that the provider has closed since the last call does not fail the next one
renew_connections();
is(run(q{SELECT response FROM llm_complete_detail('hi', model => 'fake/gpt-4o')})->{out}, 'echo: hi', 'a kept connection that is gone');

# a request that was sent on a kept connection, and lost with it, may have been charged: whoever
# sends it again, each time is an attempt
for my $model (qw(reset-before close-before))
{
	still_ok("before $model");
	$seen = $gw->requests(sub { $r = run(qq{SELECT attempts FROM llm_complete_detail('hi', model => 'fake/$model')}) });
	is($r->{out}, scalar @$seen, "$model on a kept connection: each request is an attempt");
}

$gw->add_provider('nowhere', 'https://does-not-exist.invalid/v1', { connect_timeout => "'60 s'" });
$gw->add_models('nowhere', 'm-nowhere');
error_ok(run(q{SELECT llm_complete('hi', model => 'm-nowhere')}),
	{ sqlstate => 'LG004', message => qr/host "does-not-exist.invalid" could not be resolved/ }, 'unknown host');

# TLS

my $tls = FakeProvider->new(tls => 1);
my $wrong = FakeProvider->new(tls => 1, tls_san => 'DNS:other.example');
$gw->add_provider('tls', $tls->url);
$gw->add_models('tls', 'm-tls', { upstream_name => "'gpt-4o'" });
$gw->add_provider('wrong', $wrong->url);
$gw->add_models('wrong', 'm-wrong', { upstream_name => "'gpt-4o'" });
error_ok(run(q{SELECT llm_complete('hi', model => 'm-tls')}),
	{ sqlstate => 'LG004', message => qr/certificate/i, detail => qr{^tls/m-tls: network}, hint => qr/llm_gateway.ca_file/ }, 'TLS: unknown authority');
is($tls->stats->{requests}, 0, 'is sent no request');
$s->run('SET llm_gateway.ca_file = ' . literal($tls->ca_file));
is(run(q{SELECT llm_complete('hi', model => 'm-tls')})->{out}, 'echo: hi', 'TLS: ca_file');
ok($tls->journal->[0]{tls}, 'over TLS');
$s->run('SET llm_gateway.ca_file = ' . literal($wrong->ca_file));
error_ok(run(q{SELECT llm_complete('hi', model => 'm-wrong')}),
	{ sqlstate => 'LG004', detail => qr{^wrong/m-wrong: network} }, q{TLS: another host's certificate});
is($wrong->stats->{requests}, 0, 'is sent no request');
$s->run('RESET llm_gateway.ca_file');
$gw->sql(sprintf q{UPDATE llm_providers SET base_url = %s WHERE name = 'tls'}, literal($tls->url =~ s/^https/http/r));

# in a session without a TLS connection to that port: some libcurls would use it for http
error_ok($gw->session->run(q{SELECT llm_complete('hi', model => 'm-tls')}), { sqlstate => 'LG004' }, 'http to a TLS port');

# Hosts that are not talked to

$r = run(q{INSERT INTO llm_providers (name, base_url) VALUES ('plain', 'http://api.example.com/v1')});
like($r->{err}, qr/WARNING/, 'plain http to another host: a superuser is warned');
$gw->add_models('plain', 'm-plain');
error_ok(
	run(q{SELECT llm_complete('hi', model => 'm-plain')}),
	{
		sqlstate => 'LG005',
		detail   => qr{^plain/m-plain: not tried: plain http is allowed only to this machine},
		hint     => qr{ALTER SYSTEM SET llm_gateway.allowed_hosts = 'http://api.example.com:80'}
	},
	'and a call is refused');
$s->run(q{SET llm_gateway.allowed_hosts = 'api.openai.com, *.example.org'});
$seen = $gw->requests(sub { $r = run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')}) });
error_ok($r, { sqlstate => 'LG005', detail => qr/host "127.0.0.1" \(http, port \d+\) is not in llm_gateway.allowed_hosts/ }, 'allowed_hosts');
is(scalar @$seen, 0, 'allowed_hosts: no request');
$s->run(sprintf q{SET llm_gateway.allowed_hosts = 'http://127.0.0.1:%d'}, $fake->port);
is(run(q{SELECT llm_complete('hi', model => 'fake/gpt-4o')})->{out}, 'echo: hi', 'an entry for this host');
$s->run('RESET llm_gateway.allowed_hosts');
for my $url ('https://169.254.169.254/v1', 'https://[fe80::1]/v1', 'https://[::ffff:169.254.169.254]/v1', 'https://0251.0376.0251.0376/v1')
{
	$gw->sql(sprintf q{UPDATE llm_providers SET base_url = %s WHERE name = 'nowhere'}, literal($url));
	$r = run(q{SELECT llm_complete('hi', model => 'm-nowhere')});
	error_ok($r, { sqlstate => 'LG004', message => qr/link-local or metadata address/, detail => qr{^nowhere/m-nowhere: network} }, $url);
	cmp_ok($r->{seconds}, '<', 30, "$url: without a connection");
}
still_ok('at the end');

# The keys are nowhere

$everything .= $gw->log_text;
for my $secret ($KEY, 'stored-key-Wq81-Lk20', $ENV{BROKEN_API_KEY}, $ENV{SECRET_TOKEN})
{
	# llm_set_secret's own text is in the log, since this server logs all statements
	my $text = $everything =~ s/^.*llm_set_secret.*$//mgr;
	is(index($text, $secret), -1, 'no key in any message or log');
}
like($gw->log_text, qr/DEBUG:/, 'though everything is logged');

done_testing();
