# Conversations: llm_chat in every dialect.  Each case says what is asked and what must come back in no
# provider's words, and is run with every dialect, streamed and whole.  What the fake was asked is
# read by the fake's own understanding of the dialect, which refuses what the provider would refuse.
use strict;
use warnings;
use utf8;

use FindBin;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY error_ok literal row);

my $json = JSON::PP->new->canonical->allow_nonref;
my $gw = LlmGateway->new(name => 'chat');
my $fake = $gw->fake;
my $s = $gw->session;
my $root = 'http://' . $fake->host . ':' . $fake->port;

# A dialect:
#	name     of the provider
#	columns  of llm_providers
#	request  checks what is special about a request: its URL, its headers
#	without  what it has not: image_url (it does not fetch), ids (of tool calls), tool_choice,
#	         usage_details (cached and reasoning tokens), system_messages (system texts are one)
#	errors   cases of errors, besides or instead of those for all dialects; undef: it has no such
my @dialects = (
	{
		name    => 'openai',
		columns => { kind => 'openai', base_url => $fake->url },
		request => sub {
			my ($r, $model) = @_;
			is($r->{path}, '/v1/chat/completions', 'path');
			is($r->{headers}{authorization}, "Bearer $KEY", 'key');
			is($r->{body}{model}, $model, 'model');
		},
		errors => {
			'error-body-openai-401'        => [ 'auth',       'LG009', qr/HTTP 401: Incorrect API key provided/ ],
			'error-body-openai-404-model'  => [ 'not_found',  'LG008', qr/does not exist or you do not have access/ ],
			'error-body-openai-429-quota'  => [ 'quota',      'LG012', qr/exceeded your current quota/ ],
			'error-body-openai-429-credit' => [ 'quota',      'LG012', qr/credit balance is exhausted/ ],
			'error-body-llamacpp-context'  => [ 'context_length', 'LG007', qr/exceeds the available context size/ ],
			'refusal'                      => [ 'content_policy', 'LG006', qr/can't assist with that/ ],
		},
	},
	{
		name    => 'azure',
		columns => { kind => 'azure', base_url => $root },
		request => sub {
			my ($r, $model) = @_;
			is($r->{path}, "/openai/deployments/$model/chat/completions", 'path');
			is($r->{query}, 'api-version=2024-10-21', 'query');
			is($r->{headers}{'api-key'}, $KEY, 'key');
			ok(!exists $r->{headers}{authorization}, 'and no other one');
		},
		errors => {
			'error-body-azure-content' => [ 'content_policy', 'LG006', qr/HTTP 400: The response was filtered due to the prompt triggering/ ],
			'content-policy'           => [ 'content_policy', 'LG006', qr/content management policy/ ],
			'content-policy-200'       => [ 'content_policy', 'LG006', qr/content filter stopped the answer/ ],
			'status-401'               => [ 'auth',           'LG009', qr/Access denied due to invalid subscription key/ ],
			'status-403'               => [ 'auth',           'LG009', qr/Key based authentication is disabled/ ],
			'status-404'               => [ 'not_found',      'LG008', qr/The API deployment for this resource does not exist/ ],
			'status-429'               => [ 'rate_limit',     'LG002', qr/have exceeded call rate limit/ ],
			'refusal'                  => [ 'content_policy', 'LG006', qr/can't assist with that/ ],
		},
	},
	{
		name    => 'azure_v1',
		columns => { kind => 'azure', base_url => "$root/azure/openai/", options => '{"api_version": "v1"}' },
		request => sub {
			my ($r, $model) = @_;
			is($r->{path}, '/azure/openai/v1/chat/completions', 'path');
			is($r->{query}, '', 'query');
			is($r->{headers}{'api-key'}, $KEY, 'key');
			is($r->{body}{model}, $model, 'model');
		},
		errors => {},
	},
	{
		name    => 'anthropic',
		columns => { kind => 'anthropic', base_url => "$root/anthropic" },
		without => { system_messages => 1 },
		request => sub {
			my ($r, $model) = @_;
			is($r->{path}, '/anthropic/v1/messages', 'path');
			is($r->{headers}{'x-api-key'}, $KEY, 'key');
			is($r->{body}{model}, $model, 'model');
		},
		errors => {},
	},
	{
		name    => 'gemini',
		columns => { kind => 'gemini', base_url => $root },
		without => { ids => 1, image_url => 1, system_messages => 1 },
		request => sub {
			my ($r, $model) = @_;
			like($r->{path}, qr{^/v1beta/models/\Q$model\E:(?:g|streamG)enerateContent$}, 'path');
			is($r->{headers}{'x-goog-api-key'}, $KEY, 'key');
			unlike($r->{query}, qr/key/, 'and not in the URL');
		},
		errors => {
			'status-401'   => [ 'auth',      'LG009', qr/HTTP 400: API key not valid/ ],
			'tools-broken' => [ 'malformed', 'LG010', qr/args are no object/ ],
		},
	},
	{
		name    => 'ollama',
		columns => { kind => 'ollama', base_url => $root },
		without => { ids => 1, image_url => 1, tool_choice => 1, usage_details => 1 },
		request => sub {
			my ($r, $model) = @_;
			is($r->{path}, '/api/chat', 'path');
			is($r->{body}{model}, $model, 'model');
		},
		errors => { 'content-policy' => undef, 'content-policy-200' => undef },
	},
);

my $PNG = 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
my $UNICODE = "na\x{ef}ve \x{65e5}\x{672c}\x{8a9e} \x{1f600}\x{1f468}\x{200d}\x{1f469}\x{200d}\x{1f467} end";

my @weather = (
	{
		type     => 'function',
		function => {
			name        => 'get_weather',
			description => 'The weather of a city',
			parameters  => {
				type       => 'object',
				properties => { city => { type => 'string' }, days => { type => 'integer', maximum => 3 } },
				required   => ['city'],
			},
		},
	},
	{ type => 'function', function => { name => 'get_time', parameters => { type => 'object', properties => { zone => { type => 'string' } } } } },
	{ type => 'function', function => { name => 'stop' } });
my @asked_tools = map { { name => $_->{function}{name}, parameters => $_->{function}{parameters} } } @weather;

my $schema = {
	type                 => 'object',
	properties           => { city => { type => 'string' }, size => { enum => [ 'small', 'large' ] } },
	required             => [ 'city', 'size' ],
	additionalProperties => JSON::PP::false,
};
my $loose = { type => 'object', properties => { city => { type => 'string', minLength => 1 } } };

sub user { return { role => 'user', content => $_[0] } }

# A case: args of llm_chat, asked of the provider (what is left out is not compared: messages always
# is), and answer, columns of the row.
my @cases = (
	{
		name   => 'plain',
		model  => 'gpt-4o',
		args   => { messages => [ user('Hello') ] },
		asked  => { messages => [ { role => 'user', text => 'Hello' } ], tools => undef, schema => undef, tool_choice => undef },
		answer => {
			response            => 'echo: Hello',
			finish_reason       => 'stop',
			input_tokens        => 2,
			output_tokens       => 3,
			cached_input_tokens => 0,
			reasoning_tokens    => 0,
			tool_calls          => undef,
			attempts            => 1,
			fallback            => JSON::PP::false,
			cost_usd            => '0.000008',
			error_class         => undef,
			priority            => 'normal',
		},
	},
	{
		name  => 'usage',
		needs => 'usage_details',
		model => 'usage-1000-200-400-50',
		args  => { messages => [ user('Hello') ] },
		asked => { messages => [ { role => 'user', text => 'Hello' } ] },
		answer => { input_tokens => 1000, output_tokens => 200, cached_input_tokens => 400, reasoning_tokens => 50, cost_usd => '0.00102' },
	},
	{
		name   => 'system prompts, of the call and of the conversation: one message',
		model  => 'gpt-4o',
		args   => { messages => [ { role => 'system', content => 'Be kind.' }, user('Hello') ], system_prompt => 'Be brief.' },
		asked  => { messages => [ { role => 'system', text => "Be brief.\n\nBe kind." }, { role => 'user', text => 'Hello' } ] },
		answer => { response => 'echo: Hello', input_tokens => 6 },
	},
	{
		name  => 'several turns',
		model => 'gpt-4o',
		args  => {
			messages => [
				{ role => 'developer', content => 'Be brief.' },
				user('One'), { role => 'assistant', content => 'Two' }, user([ { type => 'text', text => 'Three, ' }, { type => 'text', text => 'four' } ])
			]
		},
		asked => {
			messages => [
				{ role => 'system', text => 'Be brief.' }, { role => 'user', text => 'One' },
				{ role => 'assistant', text => 'Two' }, { role => 'user', text => 'Three, four' }
			]
		},
		answer => { response => 'echo: Three, four' },
	},
	{
		name   => 'a limit of tokens',
		model  => 'gpt-4o',
		args   => { messages => [ user('Hello there, everybody') ], max_tokens => 2 },
		asked  => { messages => [ { role => 'user', text => 'Hello there, everybody' } ], max_tokens => 2 },
		answer => { response => 'echo: He', finish_reason => 'length', output_tokens => 2 },
		notice => '01004',
	},
	{
		name   => 'characters of many bytes',
		model  => 'unicode-split',
		args   => { messages => [ user("$UNICODE \\ \"quoted\"\n\x{1f1eb}\x{1f1f7}") ], system_prompt => $UNICODE },
		asked  => { messages => [ { role => 'system', text => $UNICODE }, { role => 'user', text => "$UNICODE \\ \"quoted\"\n\x{1f1eb}\x{1f1f7}" } ] },
		answer => { response => $UNICODE },
	},
	{
		name   => 'the data of an image',
		model  => 'gpt-4o',
		args   => { messages => [ user([ { type => 'text', text => 'What is it?' }, { type => 'image_url', image_url => { url => $PNG, detail => 'low' } } ]) ] },
		asked  => { messages => [ { role => 'user', text => 'What is it?', images => [$PNG] } ] },
		answer => { response => 'echo: What is it?' },
	},
	{
		name   => 'the URL of an image',
		needs  => 'image_url',
		model  => 'gpt-4o',
		args   => { messages => [ user([ { type => 'image_url', image_url => { url => 'https://example.com/a.png' } }, { type => 'text', text => 'And that?' } ]) ] },
		asked  => { messages => [ { role => 'user', text => 'And that?', images => ['https://example.com/a.png'] } ] },
		answer => { response => 'echo: And that?' },
	},
	{
		name   => 'tools that are not called',
		model  => 'gpt-4o',
		args   => { messages => [ user('Hello') ], tools => \@weather },
		asked  => { messages => [ { role => 'user', text => 'Hello' } ], tools => \@asked_tools },
		answer => { response => 'echo: Hello', tool_calls => undef, finish_reason => 'stop' },
	},
	{
		name   => 'a tool is called',
		model  => 'tools',
		args   => { messages => [ user("Z\x{fc}rich") ], tools => \@weather, tool_choice => 'auto' },
		asked  => { messages => [ { role => 'user', text => "Z\x{fc}rich" } ], tools => \@asked_tools },
		answer => { response => undef, finish_reason => 'tool_calls', error_class => undef },
		calls  => [ [ 'get_weather', { city => "Z\x{fc}rich", days => 3 } ] ],
	},
	{
		name   => 'a tool is called without arguments',
		model  => 'tools-empty',
		args   => { messages => [ user('Stop') ], tools => [ $weather[2] ] },
		asked  => { messages => [ { role => 'user', text => 'Stop' } ] },
		answer => { response => undef, finish_reason => 'tool_calls', error_class => undef },
		calls  => [ [ 'stop', {} ] ],
	},
	{
		name   => 'tools are called at once',
		model  => 'tools-3',
		args   => { messages => [ user('{"city": "Oslo \" \\\\ \u00e9"}') ], tools => \@weather, tool_choice => 'required' },
		asked  => { messages => [ { role => 'user', text => '{"city": "Oslo \" \\\\ \u00e9"}' } ], tool_choice => 'required' },
		answer => { response => undef, finish_reason => 'tool_calls' },
		calls  => [ map { [ $_, { city => "Oslo \" \\ \x{e9}" } ] } qw(get_weather get_time stop) ],
	},
	{
		name   => 'a tool by its name',
		model  => 'tools',
		args   => { messages => [ user('Paris') ], tools => \@weather, tool_choice => { type => 'function', function => { name => 'get_time' } } },
		asked  => { messages => [ { role => 'user', text => 'Paris' } ], tool_choice => 'get_time' },
		answer => { finish_reason => 'tool_calls' },
		calls  => [ [ 'get_time', { zone => 'Paris' } ] ],
	},
	{
		name   => 'no tool',
		model  => 'gpt-4o',
		args   => { messages => [ user('Paris') ], tools => \@weather, tool_choice => 'none' },
		asked  => { messages => [ { role => 'user', text => 'Paris' } ], tool_choice => 'none' },
		answer => { finish_reason => 'stop' },
	},
	{
		name   => 'text and a tool call',
		model  => 'tools-and-text',
		args   => { messages => [ user('Paris') ], tools => \@weather },
		asked  => { messages => [ { role => 'user', text => 'Paris' } ] },
		answer => { response => 'echo: Paris', finish_reason => 'tool_calls' },
		calls  => [ [ 'get_weather', { city => 'Paris', days => 3 } ] ],
	},
	{
		name   => 'a schema',
		needs  => 'schema',
		model  => 'json',
		args   => { messages => [ user('Oslo') ], schema => $schema },
		asked  => { messages => [ { role => 'user', text => 'Oslo' } ], schema => $schema },
		json   => { city => 'Oslo', size => 'small' },
		answer => { finish_reason => 'stop' },
	},
	{
		name   => 'a schema that cannot be held strictly',
		needs  => 'schema',
		model  => 'json',
		args   => { messages => [ user('Oslo') ], schema => $loose },
		asked  => { messages => [ { role => 'user', text => 'Oslo' } ], schema => $loose },
		json   => { city => 'Oslo' },
		answer => { finish_reason => 'stop' },
	},
);

# Errors: class, SQLSTATE, message.  A tool call's arguments are checked, too.
my %errors = (
	'status-400'         => [ 'invalid_request', 'LG008', qr/HTTP 400/ ],
	'status-401'         => [ 'auth',            'LG009', qr/HTTP 401/ ],
	'status-403'         => [ 'auth',            'LG009', qr/HTTP 403/ ],
	'status-404'         => [ 'not_found',       'LG008', qr/HTTP 404/ ],
	'status-429'         => [ 'rate_limit',      'LG002', qr/HTTP 429/ ],
	'status-500'         => [ 'server_error',    'LG004', qr/HTTP 500/ ],
	'status-503'         => [ 'overloaded',      'LG004', qr/HTTP 503/ ],
	'html-502'           => [ 'server_error',    'LG004', qr/HTTP 502 \(HTML body\)/ ],
	'context-length'     => [ 'context_length',  'LG007', qr/HTTP 4\d\d: / ],
	'content-policy'     => [ 'content_policy',  'LG006', qr// ],
	'content-policy-200' => [ 'content_policy',  'LG006', qr// ],
	'error-in-200'       => [ qr/server_error|overloaded/, 'LG004', qr/error/ ],
	'error-in-stream'    => [ qr/server_error|overloaded/, 'LG004', qr/error/ ],
	'malformed'          => [ 'malformed',       'LG010', qr/JSON/ ],
	'cut'                => [ 'malformed',       'LG010', qr/before it was complete|JSON/ ],
	'tools-broken'       => [ 'malformed',       'LG010', qr/arguments of the call of tool "get_weather" are not a JSON object|JSON/ ],
	'leak-key'           => [ 'auth',            'LG009', qr/\*\*\*\*\*/ ],
);

# No retries: they are the subject of another test, and take their time.
$gw->sql('UPDATE llm_error_policies SET max_retries = 0');

# A dialect is two providers: one that streams, and one that does not.
my @providers;
for my $dialect (@dialects)
{
	for my $stream (1, 0)
	{
		my %columns = %{ $dialect->{columns} };
		my $name = $dialect->{name} . ($stream ? '' : '_whole');
		my $options = $json->decode($columns{options} // '{}');
		$options->{image_urls} = JSON::PP::true if !$dialect->{without}{image_url};
		$options->{stream} = $stream ? JSON::PP::true : JSON::PP::false;
		$gw->add_provider($name, delete $columns{base_url}, { map({ $_ => literal($columns{$_}) } keys %columns), options => literal($json->encode($options)) });
		my %models = map { $_ => 1 } (map { $_->{model} } @cases), keys %errors, keys %{ $dialect->{errors} }, 'tools-2';
		$gw->add_models($name, sort(keys %models), { input_price => 1, output_price => 2, cached_input_price => 0.05 });
		push @providers, { name => $name, stream => $stream, dialect => $dialect };
	}
}

# The row of llm_chat, as a hash; and what the session reported.
sub chat
{
	my ($session, %args) = @_;
	my @sql;
	$gw->forget;
	for my $name (sort keys %args)
	{
		my $value = $args{$name};
		$value = $json->encode($value) if $name =~ /^(?:messages|tools|tool_choice|schema)$/;
		utf8::encode($value);
		push @sql, "$name => " . ($value =~ /^\d+$/ ? $value : literal($value));
	}
	my $r = $session->run('SELECT to_json(d) FROM llm_chat(' . join(', ', @sql) . ') d');
	return $r unless $r->{out};
	my $row = decode_json($r->{out});
	$row->{$_} = defined $row->{$_} ? $row->{$_} + 0 : undef for qw(cost_usd);
	return ($row, $r);
}

# Whether the values named in the wanted ones are those.
sub values_ok
{
	my ($got, $want) = @_;
	for my $key (sort keys %$want)
	{
		my $value = $want->{$key};
		$value += 0 if $key eq 'cost_usd';
		is_deeply($got->{$key}, $value, $key);
	}
	return;
}

# What a dialect that has no ids of its own leaves out.
sub without_ids
{
	my ($messages) = @_;
	my @copy = @{ $json->decode($json->encode($messages)) };
	for my $message (@copy)
	{
		delete $message->{tool_call_id};
		delete $_->{id} for @{ $message->{tool_calls} // [] };
	}
	return \@copy;
}

sub messages_ok
{
	my ($got, $want, $dialect, $name) = @_;
	($got, $want) = map { without_ids($_) } $got, $want if $dialect->{without}{ids};
	($got, $want) = map { joined($_) } $got, $want if $dialect->{without}{system_messages};
	is_deeply($got, $want, $name) or diag(explain($got));
	return;
}

# A tool that takes no arguments may be given with a schema that says so.
sub tools_ok
{
	my ($got, $want) = @_;
	my @got = @{ $got // [] };
	for my $i (grep { !$want->[$_]{parameters} } 0 .. $#$want)
	{
		my $parameters = delete $got[$i]{parameters};
		is_deeply($parameters->{properties} // {}, {}, 'asked: a tool without arguments');
	}
	is_deeply(\@got, [ map { my %tool = %$_; delete $tool{parameters} if !$tool{parameters}; \%tool } @$want ], 'asked: tools');
	return;
}

# As a provider gets them that takes one system text, apart from the messages.
sub joined
{
	my ($messages) = @_;
	my @system = map { $_->{text} } grep { $_->{role} eq 'system' } @$messages;
	my @others = grep { $_->{role} ne 'system' } @$messages;
	return [ (@system ? { role => 'system', text => join "\n\n", @system } : ()), @others ];
}

sub calls_ok
{
	my ($got, $want) = @_;
	my @got = map { [ $_->{function}{name}, $json->decode($_->{function}{arguments}) ] } @{ $got // [] };
	is_deeply(\@got, $want, 'tool_calls') or diag(explain($got));
	my %ids = map { ($_->{id} // '') => 1 } @{ $got // [] };
	ok(keys %ids == @$want && !$ids{''}, 'each with an id of its own') if @$want;
	is_deeply([ grep { $_->{type} ne 'function' } @{ $got // [] } ], [], 'and of type function');
	return;
}

for my $provider (@providers)
{
	my ($dialect, $name) = @{$provider}{qw(dialect name)};
	my %without = %{ $dialect->{without} // {} };

	for my $case (grep { !$_->{needs} || !$without{ $_->{needs} } } @cases)
	{
		subtest "$name: $case->{name}" => sub {
			my $before = $fake->stats->{requests};
			my ($row, $r) = chat($s, %{ $case->{args} }, model => "$name/$case->{model}");
			is($r->{err}, '', 'no message') unless $case->{notice};
			is($r->{notices}[0]{sqlstate}, $case->{notice}, 'a warning') if $case->{notice};
			my ($request) = my @requests = @{ $fake->journal($before) };
			my ($asked) = @{ $fake->asked($before) };
			is(scalar @requests, 1, 'one request') or return;
			$dialect->{request}->($request, $case->{model});
			is($asked->{model}, $case->{model}, 'asked: model');
			is($asked->{key}, $KEY, 'asked: key');
			is(!!$asked->{stream}, !!$provider->{stream}, 'asked: stream');
			is($asked->{invalid}, undef, 'asked for nothing that is wrong');
			my %want = %{ $case->{asked} };
			messages_ok($asked->{messages}, delete $want{messages}, $dialect, 'asked: messages');
			delete $want{tool_choice} if $without{tool_choice};
			tools_ok($asked->{tools}, delete $want{tools}) if $want{tools};
			is_deeply($asked->{$_}, $want{$_}, "asked: $_") for sort keys %want;

			is($row->{provider}, $name, 'provider');
			is($row->{model}, $case->{model}, 'model');
			is_deeply($json->decode($row->{response}), $case->{json}, 'response') if $case->{json};
			calls_ok($row->{tool_calls}, $case->{calls} // []);
			values_ok($row, $case->{answer});
			cmp_ok($row->{ttft_ms}, '<=', $row->{latency_ms}, 'ttft_ms');
			is($gw->admin->value("SELECT operation || status FROM llm_requests WHERE request_id = $row->{request_id}"), 'chatok', 'the ledger');
		};
	}

	# The answer of llm_chat is the next message of the conversation.
	subtest "$name: two rounds" => sub {
		my @messages = user('Oslo');
		my ($row) = chat($s, messages => \@messages, tools => \@weather, model => "$name/tools-2");
		calls_ok($row->{tool_calls}, [ [ 'get_weather', { city => 'Oslo', days => 3 } ], [ 'get_time', { zone => 'Oslo' } ] ]);
		my @ids = map { $_->{id} } @{ $row->{tool_calls} };
		push @messages, { role => 'assistant', content => $row->{response}, tool_calls => $row->{tool_calls} };
		push @messages, { role => 'tool', tool_call_id => $ids[0], content => 'rain, 4°' }, { role => 'tool', tool_call_id => $ids[1], content => '{"now":"12:00"}' };
		my $before = $fake->stats->{requests};
		($row) = chat($s, messages => \@messages, tools => \@weather, model => "$name/tools-2");
		values_ok($row, { response => 'result: rain, 4°; {"now":"12:00"}', finish_reason => 'stop', tool_calls => undef, error_class => undef });
		my ($asked) = @{ $fake->asked($before) };
		is($asked->{invalid}, undef, 'asked for nothing that is wrong');
		messages_ok(
			$asked->{messages},
			[
				{ role => 'user', text => 'Oslo' },
				{
					role       => 'assistant',
					text       => '',
					tool_calls => [
						{ id => $ids[0], name => 'get_weather', arguments => { city => 'Oslo', days => 3 } },
						{ id => $ids[1], name => 'get_time',    arguments => { zone => 'Oslo' } }
					]
				},
				{ role => 'tool', text => 'rain, 4°',         tool_call_id => $ids[0] },
				{ role => 'tool', text => '{"now":"12:00"}', tool_call_id => $ids[1] }
			],
			$dialect, 'asked: messages');

		# a third one, with the answer and another question
		push @messages, { role => 'assistant', content => $row->{response} }, user('And Rome?');
		$before = $fake->stats->{requests};
		($row) = chat($s, messages => \@messages, tools => \@weather, model => "$name/tools-2");
		calls_ok($row->{tool_calls}, [ [ 'get_weather', { city => 'And Rome?', days => 3 } ], [ 'get_time', { zone => 'And Rome?' } ] ]);
		isnt($row->{tool_calls}[0]{id}, $ids[0], 'and with new ids');
		is($fake->asked($before)->[0]{invalid}, undef, 'asked for nothing that is wrong');
	};

	subtest "$name: errors" => sub {
		my %all = (%errors, %{ $dialect->{errors} });
		for my $model (sort grep { defined $all{$_} } keys %all)
		{
			my ($class, $sqlstate, $message) = @{ $all{$model} };
			my ($row) = chat($s, messages => [ user('Hello') ], tools => \@weather, model => "$name/$model");
			like($row->{error_class} // 'none', qr/^(?:$class)$/, "$model: error_class");
			like($row->{error_message}, $message, "$model: message");
			unlike($row->{error_message}, qr/\Q$KEY\E/, "$model: without the key");
			values_ok($row, { response => undef, finish_reason => undef, tool_calls => undef, attempts => 1, provider => $name });
		}
	};
	subtest "$name: errors of llm_complete" => sub {
		my %all = (%errors, %{ $dialect->{errors} });
		for my $model (sort grep { defined $all{$_} && !/tools/ } keys %all)
		{
			$gw->forget;
			error_ok($s->run('SELECT llm_complete(' . literal('Hello') . ', model => ' . literal("$name/$model") . ')'),
				{ sqlstate => $all{$model}[1], message => $all{$model}[2], hint => qr/./ }, $model);
		}
	};
}

# Who says what he can do, and cannot do this, is not asked.

for my $case (
	[ 'chat',             'tools',       { tools => \@weather } ],
	[ 'chat,tools',       'json_schema', { schema => $schema } ],
	[ 'chat,json_schema', 'image',       { messages => [ user([ { type => 'image_url', image_url => { url => $PNG } } ]) ] } ],
	[
		'chat', 'tools',
		{
			messages => [
				user('Hello'),
				{ role => 'assistant', tool_calls => [ { id => 'a', type => 'function', function => { name => 'f', arguments => '{}' } } ] },
				{ role => 'tool', tool_call_id => 'a', content => 'x' }
			]
		}
	])
{
	my ($has, $lacks, $args) = @$case;
	$gw->sql("UPDATE llm_models SET capabilities = '{$has}' WHERE provider = 'openai' AND name = 'gpt-4o'");
	my %args = (messages => [ user('Hello') ], %$args);
	my ($row, $r) = chat($s, %args, model => 'openai/gpt-4o');
	values_ok($row, { error_class => 'no_candidate', attempts => 0, response => undef });
	my $route = $s->run(q{SELECT status, error_class FROM llm_requests ORDER BY request_id DESC LIMIT 1});
	is($route->{out}, 'rejected|no_candidate', "lacks $lacks: the ledger");

	# another provider of the model is asked instead
	($row) = chat($s, %args, model => 'gpt-4o');
	isnt($row->{provider}, 'openai', "lacks $lacks: another provider answers");
	like($row->{error_class} // '', $args->{schema} ? qr/^(?:schema)?$/ : qr/^$/, 'and well');    # an echo is no JSON
	$gw->sql("UPDATE llm_models SET capabilities = '{$has,$lacks}' WHERE provider = 'openai' AND name = 'gpt-4o'");
	($row) = chat($s, %args, model => 'openai/gpt-4o');
	is($row->{error_class}, $args->{schema} ? 'schema' : undef, "has $lacks");
}
$gw->sql("UPDATE llm_models SET capabilities = NULL");

# Where Azure is asked, by base_url and api_version

for my $case (
	[ '',             undef,                '/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21' ],
	[ '/',            undef,                '/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21' ],
	[ '/openai',      '2024-12-01-preview', '/openai/deployments/gpt-4o/chat/completions?api-version=2024-12-01-preview' ],
	[ '/openai/v1/',  '2025-01-01-preview', '/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview' ],
	[ '/proxy/azure', undef,                '/proxy/azure/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21' ],
	[ '/azure',           'v1',  '/azure/openai/v1/chat/completions?' ],
	[ '/azure/openai/v1', undef, '/azure/openai/v1/chat/completions?' ],
	[ '/azure/OpenAI/',   'v1',  '/azure/openai/v1/chat/completions?' ])
{
	my ($path, $version, $want) = @$case;
	my $options = defined $version ? literal(qq({"api_version": "$version"})) : 'NULL';
	$gw->sql('UPDATE llm_providers SET base_url = ' . literal("$root$path") . ", options = $options WHERE name = 'azure'");
	my ($r) = @{ $gw->requests(sub { $s->value(q{SELECT llm_complete('x', model => 'azure/gpt-4o')}) }) };
	is("$r->{path}?$r->{query}", $want, "azure: base_url '$path', api_version " . ($version // 'not given'));
}

# A deployment may have any name that fits a URL; it is asked for in one segment of the path.
$gw->sql(q{UPDATE llm_providers SET options = NULL WHERE name = 'azure'});
$gw->add_models('azure', 'deployed', { upstream_name => q{'my chat/v1?é'} });
my ($request) = @{ $gw->requests(sub { $s->run(q{SELECT llm_complete('x', model => 'deployed')}) }) };
is($request->{path}, '/azure/openai/deployments/my%20chat%2Fv1%3F%C3%A9/chat/completions', 'azure: the name of a deployment is escaped');
$gw->sql('UPDATE llm_providers SET base_url = ' . literal($root) . q{, options = NULL WHERE name = 'azure'});

# Azure says in milliseconds when to come back.
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 1, backoff_ms = 1 WHERE error_class = 'rate_limit'});
$fake->script('gpt-4o', { behaviour => 'status-429', headers => { 'retry-after' => undef, 'retry-after-ms' => undef, 'x-ms-retry-after-ms' => '300' } });
my $requests = $gw->requests(sub { is($s->value(q{SELECT llm_complete('x', model => 'azure/gpt-4o')}), 'echo: x', 'azure: a rate limit is waited for') });
cmp_ok($requests->[1]{time} - $requests->[0]{time}, '>=', 0.29, 'as long as x-ms-retry-after-ms says');
$fake->script('gpt-4o', { behaviour => 'status-429', headers => { 'retry-after' => 30, 'retry-after-ms' => '250', 'x-ms-retry-after-ms' => undef } });
$requests = $gw->requests(sub { $s->value(q{SELECT llm_complete('x', model => 'azure/gpt-4o')}) });
cmp_ok($requests->[1]{time} - $requests->[0]{time}, '>=', 0.24, 'or retry-after-ms');
cmp_ok($requests->[1]{time} - $requests->[0]{time}, '<', 20, 'rather than retry-after');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0});

# What OpenAI is asked for in its own words: schemas, strict where it takes them so, and what the user
# wrote over ours.

for my $case (
	[ 1, $schema ],
	[ 0, $loose ],
	[ 1, { %$schema, '$schema' => 'http://json-schema.org/draft-07/schema#' } ],
	[ 0, { %$schema, additionalProperties => JSON::PP::true } ],
	[ 0, { %$schema, required => ['city'] } ],
	[ 0, { type => 'array', items => { type => 'string' } } ],
	[ 0, { type => 'object' } ],
	[ 1, { %$schema, properties => { city => { type => [ 'string', 'null' ] }, size => { anyOf => [ { type => 'integer' }, { '$ref' => '#/$defs/size' } ] } }, '$defs' => { size => { enum => ['big'] } } } ],
	[ 0, { %$schema, properties => { city => { type => 'string' }, size => { oneOf => [ { type => 'integer' } ] } } } ],
	[ 0, { %$schema, properties => { city => { type => 'string' }, size => {} } } ],
	[ 0, { %$schema, properties => { city => { type => 'string' }, size => $loose } } ],
	[ 1, { %$schema, properties => { city => { type => 'string' }, size => $schema } } ],
	[ 0, { %$schema, properties => { city => { type => 'string' }, size => { type => 'array' } } } ],
	[ 1, { %$schema, properties => { city => { type => 'string' }, size => { type => 'array', items => { type => 'number' } } } } ])
{
	my ($strict, $schema) = @$case;
	my $before = $fake->stats->{requests};
	my ($row) = chat($s, messages => [ user('Oslo') ], schema => $schema, model => 'openai/json');
	is($row->{error_message}, undef, 'a schema is taken');
	my $format = $fake->journal($before)->[0]{body}{response_format};
	is_deeply(
		$format,
		{ type => 'json_schema', json_schema => { name => 'answer', strict => $strict ? JSON::PP::true : JSON::PP::false, schema => $schema } },
		($strict ? 'strictly: ' : 'not strictly: ') . $json->encode($schema));
}
my $extra = '{"extra": {"tools": [], "tool_choice": "x", "response_format": {"type": "text"}, "parallel_tool_calls": false}}';
($request) = @{
	$gw->requests(sub {
		chat($s, messages => [ user('Oslo') ], tools => \@weather, tool_choice => 'auto', schema => $schema, params => $extra, model => 'openai/gpt-4o');
	})
};
is_deeply($request->{body}{$_}, $json->decode($extra)->{extra}{$_}, "extra: $_") for qw(tools tool_choice response_format parallel_tool_calls);
($request) = @{
	$gw->requests(sub {
		chat($s, messages => [ { role => 'system', content => 'a', name => 'b' }, { role => 'user', content => 'c', name => 'd' } ], tools => [ { type => 'function', function => { name => 'f', strict => JSON::PP::true } } ], model => 'openai/gpt-4o');
	})
};
is_deeply($request->{body}{messages}, [ { role => 'system', content => 'a', name => 'b' }, { role => 'user', content => 'c', name => 'd' } ], 'who speaks');
is_deeply($request->{body}{tools}, [ { type => 'function', function => { name => 'f', strict => JSON::PP::true } } ], 'a strict tool');

# The limit is said again in the words that a deployment wants, whatever its name.
$gw->add_models('azure', 'needs-max-completion-tokens');
my ($row) = chat($s, messages => [ user('Oslo') ], max_tokens => 100, model => 'azure/needs-max-completion-tokens');
values_ok($row, { response => 'echo: Oslo', attempts => 2 });
($row) = chat($s, messages => [ user('Oslo') ], max_tokens => 100, model => 'azure/needs-max-completion-tokens');
values_ok($row, { response => 'echo: Oslo', attempts => 1 });

# Answers that name no id, or that a stop ends

$fake->script(
	'gpt-4o',
	{
		body => {
			choices => [
				{
					index         => 0,
					finish_reason => 'stop',
					message       => { role => 'assistant', content => undef, tool_calls => [ map { { type => 'function', function => { name => 'f', arguments => $_ } } } '{"a": 1}', ' ', '{}' ] }
				}
			],
			usage => { prompt_tokens => 1, completion_tokens => 1, total_tokens => 2 }
		}
	});
($row) = chat($s, messages => [ user('x') ], model => 'openai_whole/gpt-4o');
is($row->{finish_reason}, 'tool_calls', 'a call that ends with "stop"');
is_deeply([ map { $_->{function}{arguments} } @{ $row->{tool_calls} } ], [ '{"a": 1}', '{}', '{}' ], 'arguments');
like($row->{tool_calls}[$_]{id}, qr/^call_$row->{request_id}_@{[ $_ + 1 ]}$/, 'an id where the provider gives none') for 0 .. 2;

$fake->script(
	'gpt-4o',
	{
		body => {
			choices => [
				{
					index         => 0,
					finish_reason => 'tool_calls',
					message       => { role => 'assistant', content => undef, tool_calls => [ map { { id => $_, type => 'function', function => { name => 'f', arguments => '{}' } } } qw(a a a_2 b a) ] }
				}
			]
		}
	});
($row) = chat($s, messages => [ user('x') ], model => 'openai_whole/gpt-4o');
is_deeply([ map { $_->{id} } @{ $row->{tool_calls} } ], [qw(a a_3 a_2 b a_4)], 'ids that a provider gives twice');

# A conversation that began with one provider goes on with another: ids that do not fit there are others,
# the same for a call and its result; those that fit stay.
$gw->add_provider('brief', $fake->url, { options => literal('{"short_call_ids": true}') });
$gw->add_models('brief', 'gpt-4o');
my $long = 'chatcmpl-tool-' . 'x' x 56;
for my $case (
	[ 'openai', qr/^.+$/, qw(functions.f:0 call_1_2 abcDEF123 toolu_01-x), $long ],
	[ 'gemini', undef ],
	[ 'azure', qr/^.{1,40}$/, qw(functions.f:0 functions.f:1 call_1_2 abcDEF123 toolu_01-x) ],
	[ 'anthropic', qr/^[a-zA-Z0-9_-]{1,64}$/, qw(call_1_2 abcDEF123 toolu_01-x) ],
	[ 'brief', qr/^[a-zA-Z0-9]{9}$/, qw(abcDEF123) ])
{
	my ($name, $form, @stay) = @$case;
	my @ids = (qw(functions.f:0 functions.f:1 call_1_2 abcDEF123 toolu_01-x), $long);
	my @messages = (
		user('x'), { role => 'assistant', tool_calls => [ map { { id => $_, type => 'function', function => { name => 'f', arguments => '{}' } } } @ids ] },
		map { { role => 'tool', tool_call_id => $_, content => "of $_" } } reverse @ids);
	my $before = $fake->stats->{requests};
	for (1 .. 2)
	{
		my ($row) = chat($s, messages => \@messages, model => "$name/gpt-4o");
		is($row->{error_message}, undef, "$name: takes calls of others");
	}
	next unless $form;
	my ($first, $second) = @{ $fake->asked($before) };
	is_deeply($second->{messages}, $first->{messages}, "$name: ids follow from ids");
	my @asked = map { $_->{id} } @{ $first->{messages}[1]{tool_calls} };
	my %asked = map { $ids[$_] => $asked[$_] } 0 .. $#ids;
	is(scalar keys %{ { reverse %asked } }, scalar @ids, "$name: to each its own");
	is_deeply([ grep { $_ !~ $form } @asked ], [], "$name: ids fit");
	is_deeply([ map { [ $_->{tool_call_id}, $_->{text} ] } grep { $_->{role} eq 'tool' } @{ $first->{messages} } ], [ map { [ $asked{$_}, "of $_" ] } reverse @ids ], "$name: results have those of their calls");
	is($asked{$_}, $_, "$name: $_ stays") for @stay;
	is_deeply([ sort grep { $asked{$_} eq $_ } @ids ], [ sort @stay ], "$name: no other does") unless $name eq 'openai';
}

# A call that the limit cut is no call.
$fake->script('tools-broken', { behaviour => 'tools-broken+length' });
($row) = chat($s, messages => [ user('x') ], tools => \@weather, model => 'openai/tools-broken');
like($row->{error_message}, qr/arguments of the call of tool "get_weather" were cut by a token limit/, 'a call that the limit cut');

# A fallback tells the next provider the whole conversation.
my @history = (
	user([ { type => 'text', text => 'Weather?' }, { type => 'image_url', image_url => { url => $PNG } } ]),
	{ role => 'assistant', content => 'Wait.', tool_calls => [ { id => 'call-1', type => 'function', function => { name => 'get_weather', arguments => '{"city":"Oslo"}' } } ] },
	{ role => 'tool', tool_call_id => 'call-1', content => 'rain' });
$gw->sql(q{INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('both', 'openai/status-500', 1), ('both', 'azure/gpt-4o', 2)});
my $before = $fake->stats->{requests};
($row) = chat($s, messages => \@history, tools => \@weather, model => 'both');
values_ok($row, { response => 'echo: Weather?', provider => 'azure', fallback => JSON::PP::true, attempts => 2 });
my @asked = @{ $fake->asked($before) };
is_deeply($asked[1]{messages}, $asked[0]{messages}, 'a fallback gets the same conversation');
is(scalar @{ $asked[1]{messages} }, 3, 'all of it');

# What is kept of a conversation: its hash, and its text only where a superuser wants that.
$gw->sql('ALTER SYSTEM SET llm_gateway.log_content = on');
$gw->sql('SELECT pg_reload_conf()');
my $logged = $gw->session;
my $messages = $json->encode([ user('Hello') ]);
ok($logged->run("SHOW llm_gateway.log_content")->{out} =~ /on/, 'texts are kept');
($row) = chat($logged, messages => [ user('Hello') ], model => 'openai/gpt-4o');
is($s->value("SELECT prompt::jsonb = " . literal($messages) . "::jsonb, response FROM llm_requests WHERE request_id = $row->{request_id}"), 't|echo: Hello', 'of a conversation, too');
is($s->value(q{SELECT count(DISTINCT prompt_hash) FROM llm_requests WHERE operation = 'chat' AND prompt_hash IS NOT NULL}) > 10, 1, 'hashes of conversations');

# Other encodings of the database
for my $encoding (qw(LATIN1 SQL_ASCII))
{
	my $database = lc $encoding;
	$gw->sql("CREATE DATABASE $database ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	$gw->set_up($database);
	$gw->add_models('fake', 'tools', 'json', { database => $database });
	my $other = $gw->session($database);
	$other->value("SET client_encoding = 'UTF8'") if $encoding eq 'LATIN1';
	my @tools = ({ type => 'function', function => { name => 'f', description => "\x{fc}ber", parameters => { type => 'object', properties => { "\x{e9}t\x{e9}" => { type => 'string' } } } } });
	my $since = $fake->stats->{requests};
	($row) = chat($other, messages => [ { role => 'system', content => "\x{e4}" }, user("Z\x{fc}rich") ], tools => \@tools, model => 'tools');
	calls_ok($row->{tool_calls}, [ [ 'f', { "\x{e9}t\x{e9}" => "Z\x{fc}rich" } ] ]);
	is_deeply($fake->asked($since)->[0]{messages}, [ { role => 'system', text => "\x{e4}" }, { role => 'user', text => "Z\x{fc}rich" } ], "$encoding: messages");
	is_deeply($fake->asked($since)->[0]{tools}, [ { name => 'f', parameters => $tools[0]{function}{parameters} } ], "$encoding: tools");
	($row) = chat($other, messages => [ user("Z\x{fc}rich") ], schema => { type => 'object', properties => { "\x{e9}" => { type => 'string' } } }, model => 'json');
	is_deeply($json->decode($row->{response}), { "\x{e9}" => "Z\x{fc}rich" }, "$encoding: a schema");
	# Arguments are JSON within JSON: many servers escape what is not ASCII in them.
	for my $case ([ '\u00fc', "\x{fc}" ], [ '\u65e5 \ud83d\ude00', "\x{65e5} \x{1f600}", 'LATIN1' ])
	{
		my ($escaped, $text, $unfit) = @$case;
		my $call = { id => 'call-1', type => 'function', function => { name => 'f', arguments => qq({"city": "\\\\ \\" $escaped"}) } };
		$fake->script('tools', { body => { choices => [ { index => 0, finish_reason => 'tool_calls', message => { role => 'assistant', content => undef, tool_calls => [$call] } } ] }, repeat => 2 });
		$since = $fake->stats->{requests};
		($row) = chat($other, messages => [ user('x') ], tools => \@tools, model => 'tools');
		is(scalar @{ $fake->journal($since) }, 1, "$encoding: escaped arguments are paid once");
		if ($encoding eq ($unfit // ''))
		{
			$fake->script('tools');
			values_ok($row, { error_class => 'malformed', attempts => 1, tool_calls => undef });
			like($row->{error_message}, qr/: the arguments of the call of tool "f" have a character that the database's encoding cannot hold$/, "$encoding: and why");
			next;
		}
		values_ok($row, { error_class => undef, finish_reason => 'tool_calls' });
		calls_ok($row->{tool_calls}, [ [ 'f', { city => "\\ \" $text" } ] ]);
		# what a user does with them
		my $used = $other->value(q{SELECT (tool_calls->0->'function'->>'arguments')::jsonb->>'city' FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'tools')});
		utf8::decode($used);
		is($used, "\\ \" $text", "$encoding: the database takes the arguments for jsonb");
		$fake->script('tools');
	}
	error_ok($other->run(qq(SELECT llm_chat('[{"role": "\xc3\xa9"}]'))), { sqlstate => '22023', message => qr/messages\[0\]\.role must be .*not "\xc3\xa9"/ }, "$encoding: a mistake");
}
# bytes that are no UTF-8 where nothing is converted
my $bytes = $gw->session('sql_ascii')->run(q{SELECT error_class, error_message FROM llm_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', convert_from('\xff41', 'SQL_ASCII'))), model => 'json')});
like($bytes->{out}, qr/^invalid_request\|.*the prompt is not valid UTF-8 at byte offset 0: 0xff/, 'SQL_ASCII: bytes that are no UTF-8');

$gw->no_crash_ok;
done_testing();
