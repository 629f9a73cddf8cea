# Embeddings: what each dialect is asked, the vectors that come of it, what the ledger says of them, how
# a batch is packed, and that no second model ever takes part.
use strict;
use warnings;
use utf8;

use FindBin;
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);

use lib $FindBin::Bin;
use LlmGateway qw($KEY PROMPTLY error_ok literal row rows);

my $json = JSON::PP->new->canonical->allow_nonref->utf8(1);
my $gw = LlmGateway->new(name => 'embed');
my $fake = $gw->fake;
my $s = $gw->session;
my $root = 'http://' . $fake->host . ':' . $fake->port;
my ($r, $requests, $row, @rows);

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = least(max_retries, 1)');

# The vectors that the fake makes of the texts.
sub vectors
{
	my ($dimensions, @texts) = @_;
	my $program = 'import json, sys; sys.path.insert(0, sys.argv[1]); from fake.contents import vector;'
	  . ' print(json.dumps([vector(t, int(sys.argv[2])) for t in json.loads(sys.argv[3])]))';
	open my $pipe, '-|', $ENV{PYTHON} || 'python3', '-c', $program, $FindBin::Bin, $dimensions, $json->encode(\@texts)
	  or die "python3: $!";
	my $out = do { local $/; <$pipe> };
	close $pipe or die 'python3 failed';
	return @{ $json->decode($out) };
}

# Whether an array of SQL is that vector, as single precision has it.
sub vector_ok
{
	my ($got, $want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @got = $got =~ /^\{(.*)\}$/ ? split(/,/, $1) : ();
	my @far = grep { abs($got[$_] - $want->[$_]) > 1e-6 } 0 .. (@got < @$want ? $#got : $#$want);
	ok(@got == @$want && !@far, $name) or diag("got $got, expected @$want");
	return;
}

# Runs it and returns the requests that it made.
sub requests_of
{
	my ($sql) = @_;
	return $gw->requests(sub { $r = $s->run($sql) });
}

# The newest request of the ledger.
sub recorded
{
	return row($s, q{SELECT operation, task, task_source, provider, model, status, error_class, attempts, fallback, input_tokens,
		output_tokens, cost_usd, estimated_usd, cost_source, prompt, response, prompt_hash IS NOT NULL AS hashed
		FROM llm_requests ORDER BY request_id DESC LIMIT 1});
}

sub inputs { return 'ARRAY[' . join(', ', map { literal($_) } @_) . ']::text[]' }

my %price = (input_price => 2, output_price => 1000);

# What each dialect is asked, and what it answers

my @texts = ('a black cat', 'income tax');
my @dialects = (
	{
		name    => 'openai',
		columns => { kind => "'openai'", base_url => literal($fake->url) },
		path    => '/v1/embeddings',
		body    => { model => 'm', input => \@texts },
		few     => { dimensions => 3 },
		key     => [ authorization => "Bearer $KEY" ],
		usage   => 6,
	},
	{
		name    => 'azure',
		columns => { kind => "'azure'", base_url => literal($root) },
		path    => '/openai/deployments/m/embeddings',
		body    => { input => \@texts, model => 'm' },
		few     => { dimensions => 3 },
		key     => [ 'api-key' => $KEY ],
		usage   => 6,
	},
	{
		name    => 'gemini',
		columns => { kind => "'gemini'", base_url => literal($root) },
		path    => '/v1beta/models/m:batchEmbedContents',
		body    => { requests => [ map { { model => 'models/m', content => { parts => [ { text => $_ } ] } } } @texts ] },
		each    => { outputDimensionality => 3 },
		key     => [ 'x-goog-api-key' => $KEY ],
	},
	{
		name    => 'ollama',
		columns => { kind => "'ollama'", base_url => literal($root) },
		path    => '/api/embed',
		body    => { model => 'm', input => \@texts, truncate => JSON::PP::false },
		few     => { dimensions => 3 },
		key     => [ authorization => "Bearer $KEY" ],
		usage   => 6,
	});
my ($cat, $tax) = vectors(16, @texts);
my ($small_cat, $small_tax) = vectors(3, @texts);

for my $d (@dialects)
{
	my $name = $d->{name};
	$gw->add_provider($name, '', $d->{columns});
	$gw->add_models($name, 'm', 'gemini-embedding-2', 'embed-short', 'embed-long', 'embed-ragged', 'embed-nan', 'embed-text',
		'status-429', 'status-500', 'malformed', 'cut', 'no-usage', {%price});

	$requests = requests_of('SELECT embedding FROM llm_embed_batch(' . inputs(@texts) . ", model => '$name/m') ORDER BY idx");
	is(scalar @$requests, 1, "$name: one request");
	is($requests->[0]{path}, $d->{path}, "$name: path");
	is($requests->[0]{headers}{ $d->{key}[0] }, $d->{key}[1], "$name: key");
	is($requests->[0]{headers}{accept}, 'application/json', "$name: accepts a document");
	is_deeply($requests->[0]{body}, $d->{body}, "$name: body") or diag($json->encode($requests->[0]{body}));
	my @got = split /\n/, $r->{out};
	vector_ok($got[0], $cat, "$name: the first vector");
	vector_ok($got[1], $tax, "$name: the second vector");

	$row = recorded();
	is_deeply(
		[ @{$row}{qw(operation task task_source provider model status attempts fallback output_tokens prompt response hashed)} ],
		[ 'embed', 'embedding', 'default', $name, 'm', 'ok', 1, 'false', 0, undef, undef, 'true' ],
		"$name: in the ledger");
	is_deeply(
		[ @{$row}{qw(input_tokens cost_source cost_usd estimated_usd)} ],
		[ $d->{usage} // 6, $d->{usage} ? 'usage' : 'estimate', '0.000012', '0.000012' ],
		"$name: tokens and cost") or diag($json->encode($row));

	$requests = requests_of('SELECT embedding FROM llm_embed_batch(' . inputs(@texts) . ", model => '$name/m', dimensions => 3) ORDER BY idx");
	my %body = (%{ $d->{body} }, %{ $d->{few} // {} });
	$body{requests} = [ map { { %$_, %{ $d->{each} } } } @{ $body{requests} } ] if $d->{each};
	is_deeply($requests->[0]{body}, \%body, "$name: body with dimensions") or diag($json->encode($requests->[0]{body}));
	@got = split /\n/, $r->{out};
	vector_ok($got[0], $small_cat, "$name: the first of three dimensions");
	vector_ok($got[1], $small_tax, "$name: the second of three dimensions");

	vector_ok($s->value(qq{SELECT llm_embed('a black cat', model => '$name/m')}), $cat, "$name: llm_embed");

	for my $bad (
		[ 'embed-short',  'LG010', 'malformed' ], [ 'embed-long', 'LG010', 'malformed' ], [ 'embed-ragged', 'LG010', 'malformed' ],
		[ 'embed-nan',    'LG010', 'malformed' ], [ 'embed-text', 'LG010', 'malformed' ], [ 'malformed',    'LG010', 'malformed' ],
		[ 'cut',          'LG010', 'malformed' ],
		[ 'status-429', 'LG002', 'rate_limit' ], [ 'status-500', 'LG004', 'server_error' ])
	{
		my ($model, $sqlstate, $class) = @$bad;
		$requests = requests_of("SELECT llm_embed('a black cat', model => '$name/$model')");
		error_ok($r, { sqlstate => $sqlstate, detail => qr/$class after/ }, "$name: $model");
		is(scalar @$requests, 2, "$name: $model is tried again");
		is($s->value('SELECT DISTINCT error_class FROM llm_embed_batch(' . inputs(@texts) . ", model => '$name/$model')"), $class, "$name: $model in a batch");
	}
	$row = recorded();
	is_deeply([ @{$row}{qw(operation status error_class attempts cost_usd)} ], [ 'embed', 'error', 'server_error', 2, '0' ], "$name: a failure in the ledger");
	is($s->value("SELECT array_length(llm_embed('x', model => '$name/no-usage'), 1)"), 16, "$name: no usage");
	is(recorded()->{cost_source}, 'estimate', "$name: cost without usage");
	$fake->script('m', 'status-429');
	vector_ok($s->value(qq{SELECT llm_embed('a black cat', model => '$name/m')}), $cat, "$name: after a 429");
	is(recorded()->{attempts}, 2, "$name: the second attempt");
	$fake->script('m');
}
is($s->value(q{SELECT array_length(llm_embed('x', model => 'gemini/gemini-embedding-2'), 1)}), 16, 'gemini-embedding-2');
is(recorded()->{cost_source}, 'usage', 'says what it counted');

# The mock provider

$gw->add_provider('mock', '', { kind => "'mock'", base_url => 'NULL', api_key => 'NULL' });
$gw->add_models('mock', 'mock-embedding', {%price});
$s->value(q{CREATE FUNCTION cosine(a real[], b real[]) RETURNS float8 LANGUAGE sql AS
	'SELECT sum(x::float8 * y) / sqrt(sum(x::float8 * x) * sum(y::float8 * y)) FROM unnest(a, b) t(x, y)'});
is($s->value(q{SELECT cosine(a, b) > 0.5, cosine(a, c) < 0.5, array_length(d, 1), a = llm_embed('a black cat', model => 'mock-embedding')
	FROM (SELECT llm_embed('a black cat', model => 'mock-embedding') a, llm_embed('the black cat', model => 'mock-embedding') b,
		llm_embed('income tax law', model => 'mock-embedding') c, llm_embed('x', model => 'mock-embedding', dimensions => 64) d OFFSET 0) t}),
	't|t|64|t', 'mock: what shares words is close');
is(recorded()->{cost_source}, 'usage', 'mock: usage');

# Arguments

is($s->value('SELECT llm_embed(NULL) IS NULL'), 't', 'NULL');
is($s->value('SELECT count(*) FROM llm_embed_batch(NULL)'), 0, 'NULL array');
is($s->value(q{SELECT count(*) FROM llm_embed_batch('{}')}), 0, 'empty array');
error_ok($s->run(q{SELECT llm_embed('')}), { sqlstate => '22023', message => qr/input must not be empty/ }, 'empty input');
for my $n (0, -1, 65537)
{
	error_ok($s->run("SELECT llm_embed('x', dimensions => $n)"), { sqlstate => '22023', message => qr/dimensions/ }, "dimensions $n");
	error_ok($s->run("SELECT * FROM llm_embed_batch('{x}', dimensions => $n)"), { sqlstate => '22023', message => qr/dimensions/ }, "batch: dimensions $n");
}
error_ok($s->run(q{SELECT llm_embed('x', 'gpt-4o')}), { sqlstate => '42704', hint => qr/model => 'gpt-4o'/ }, 'a model for the priority');
error_ok($s->run(q{SELECT llm_embed('x', params => '{"nonsense": 1}')}), { sqlstate => '22023' }, 'params');
error_ok($s->run(q{SELECT llm_embed('x', timeout_ms => -1)}), { sqlstate => '22023' }, 'timeout_ms');
error_ok($s->run(q{SELECT llm_embed('x', cache => 'sometimes')}), { sqlstate => '22023' }, 'cache');
error_ok($s->run(q{SELECT llm_embed('x', tags => '[]')}), { sqlstate => '22023' }, 'tags');
error_ok($s->run(q{SELECT * FROM llm_embed_batch('{x}', max_concurrency => 0)}), { sqlstate => '22023' }, 'max_concurrency');
error_ok($s->run(q{SELECT llm_embed('x', model => 'openai/m', cache => 'only')}), { sqlstate => 'LG005', message => qr/cached for this input/ }, 'cache only');
is($s->value(q{SELECT idx, embedding IS NULL, error_class FROM llm_embed_batch('{x,y}', model => 'openai/m', cache => 'only')}), "1|t|no_candidate\n2|t|no_candidate", 'cache only in a batch');
$requests = requests_of(q{SELECT llm_embed('x', 'high', model => 'openai/m', task => 'lookup', params => '{"user": "u"}', tags => '{"team": "a"}')});
is_deeply($requests->[0]{body}, { model => 'm', input => ['x'], user => 'u' }, 'params are sent');
is($s->value('SELECT task, task_source, priority, tags FROM llm_requests ORDER BY request_id DESC LIMIT 1'), 'lookup|argument|high|{"team": "a"}', 'and the rest is recorded');

$gw->add_models('openai', 'silent', 'slow-300');
error_ok($s->run(q{SELECT llm_embed('x', model => 'openai/silent', timeout_ms => 100)}), { sqlstate => 'LG003' }, 'timeout_ms binds');
$r = $s->run(q{SET llm_gateway.on_error = 'null'; SELECT llm_embed('x', model => 'openai/status-500') IS NULL; RESET llm_gateway.on_error});
is($r->{out}, 't', 'on_error null');
is($r->{notices}[0]{sqlstate}, 'LG004', 'with a warning');

# A provider that does not do as it is told

$fake->script('m', { repeat => 2, body => { data => [ { embedding => [ 1, 2 ] } ] } });
error_ok($s->run(q{SELECT llm_embed('x', model => 'openai/m', dimensions => 3)}), { sqlstate => 'LG010', message => qr/2 dimensions instead of 3/ }, 'other dimensions than asked for');
$fake->script('m', { repeat => 2, body => '{"data": [{"embedding": [1e39]}]}' });
error_ok($s->run(q{SELECT llm_embed('x', model => 'openai/m')}), { sqlstate => 'LG010', message => qr/out of range/ }, 'a number that is too large');
$fake->script('m', { repeat => 2, body => '{"data": [{"embedding": []}]}' });
error_ok($s->run(q{SELECT llm_embed('x', model => 'openai/m')}), { sqlstate => 'LG010' }, 'an empty vector');
$fake->script('m', { repeat => 2, body => 'data: {"choices": []}', headers => { 'content-type' => 'text/event-stream' } });
error_ok($s->run(q{SELECT llm_embed('x', model => 'openai/m')}), { sqlstate => 'LG010' }, 'a stream of events');
$fake->script('m', { body => '{"data": [{"embedding": [1, -0.5, 1.25e-3, 3.4e38]}]}' });
is($s->value(q{SELECT llm_embed('x', model => 'openai/m')}), '{1,-0.5,0.00125,3.4e+38}', 'numbers');
{
	my $admin = $gw->admin;
	$admin->value('SET llm_gateway.max_response_size = 20');
	$fake->script('m', { body => '{"data": [{"embedding": [' . join(',', (0.123456789) x 3072) . ']}]}', repeat => 2 });
	error_ok($admin->run(q{SELECT llm_embed('x', model => 'openai/m')}), { sqlstate => 'LG010', message => qr/larger than 20 kB/ }, 'an answer that is too large');
	$fake->script('m');
	$requests = $gw->requests(sub { $r = $admin->run(q{SELECT count(embedding) FROM llm_embed_batch('{a,b,c}', model => 'openai/m', dimensions => 500)}) });
	is("$r->{out} of " . @$requests, '3 of 3', 'packs are as small as the answer must be');
	$admin->value('RESET llm_gateway.max_response_size');
}

# Packing

my $thousand = q{(SELECT array_agg('text ' || i ORDER BY i) FROM generate_series(1, 1000) i)};
for my $case ([ 'openai', 2 ], [ 'gemini', 10 ], [ 'ollama', 4 ], [ 'mock', 2 ])
{
	my ($name, $packs) = @$case;
	my $model = $name eq 'mock' ? 'mock/mock-embedding' : "$name/m";
	my $before = $s->value('SELECT coalesce(max(request_id), 0) FROM llm_requests');
	$requests = requests_of("SELECT count(*), count(embedding), string_agg(idx::text, ',' ORDER BY ordinality) = string_agg(idx::text, ',' ORDER BY idx), min(idx), max(idx),
		max(embedding::text) FILTER (WHERE idx = 777) FROM llm_embed_batch($thousand, model => '$model') WITH ORDINALITY");
	like($r->{out}, qr/^1000\|1000\|t\|1\|1000\|/, "$name: 1,000 inputs, in order") or diag($r->{err});
	is(scalar @$requests, $name eq 'mock' ? 0 : $packs, "$name: requests");
	vector_ok($r->{out} =~ s/.*\|//r, (vectors(16, 'text 777'))[0], "$name: each its own") if $name ne 'mock';
	is($s->value("SELECT count(*), sum(input_tokens) > 0, count(DISTINCT model), string_agg(DISTINCT operation, ',') FROM llm_requests WHERE request_id > $before"),
		"$packs|t|1|embed", "$name: one record for each request");
}

$requests = requests_of(q{SELECT count(embedding) FROM llm_embed_batch((SELECT array_agg(repeat(chr(96 + i), 100000)) FROM generate_series(1, 7) i), model => 'openai/m')});
is("$r->{out} of " . @$requests, '7 of 4', 'packs of at most 250,000 bytes');
$requests = requests_of(q{SELECT count(embedding) FROM llm_embed_batch((SELECT array_agg(repeat(chr(96 + i), 300000)) FROM generate_series(1, 2) i), model => 'openai/m')});
is("$r->{out} of " . @$requests, '2 of 2', 'an input that is larger goes alone');

$fake->reset;
$gw->add_provider('slow', $root, { kind => "'gemini'" });
$gw->add_models('slow', qw(slow-300 slow-1500));
is($s->value("SELECT count(embedding) FROM llm_embed_batch($thousand, model => 'slow/slow-1500')"), 1000, 'ten packs');
is($fake->stats->{max_in_flight}, 10, 'all at once');
$fake->reset;
is($s->value("SELECT count(embedding) FROM llm_embed_batch($thousand, model => 'slow/slow-300', max_concurrency => 3)"), 1000, 'ten packs, three at a time');
is($fake->stats->{max_in_flight}, 3, 'no more than that');

# Rows have their own outcome

$requests = requests_of(q{SELECT idx, embedding IS NOT NULL, error_class, error_message FROM llm_embed_batch(ARRAY['a', NULL, '', 'b', 'a', ''], model => 'openai/m')});
is($r->{out}, "1|t||\n2|f||\n3|f|invalid_request|the input is empty\n4|t||\n5|t||\n6|f|invalid_request|the input is empty", 'NULL and empty inputs');
is_deeply($requests->[0]{body}{input}, [ 'a', 'b' ], 'equal inputs are sent once');
for my $mode ([ 'on', 2 ], [ 'off', 3 ], [ 'refresh', 3 ])
{
	$requests = requests_of("SELECT count(DISTINCT embedding) FROM llm_embed_batch('{a,b,a}', model => 'openai/m', cache => '$mode->[0]')");
	is($r->{out} . ' ' . @{ $requests->[0]{body}{input} }, "2 $mode->[1]", "cache $mode->[0]");
}
is($s->value(q{SELECT count(*) FROM llm_embed_batch(ARRAY[NULL, '']::text[], model => 'openai/m')}), 2, 'nothing to send');
is($s->value(q{SELECT string_agg(idx || ':' || array_length(embedding, 1), ' ') FROM llm_embed_batch('{{a,b},{c,d}}', model => 'openai/m')}), '1:16 2:16 3:16 4:16', 'two dimensions');

$fake->script('m', 'status-404');
is($s->value("SELECT count(embedding), count(*) FILTER (WHERE error_class = 'not_found'), min(idx) FILTER (WHERE error_class IS NOT NULL)
	FROM llm_embed_batch($thousand, model => 'gemini/m', max_concurrency => 1)"),
	'900|100|1', 'a pack that fails, and nine that do not');
$fake->script('m', 'default', 'status-404');
is($s->value("SELECT count(embedding), min(idx) FILTER (WHERE error_class IS NOT NULL), max(idx) FILTER (WHERE error_class IS NOT NULL)
	FROM llm_embed_batch($thousand || $thousand, model => 'gemini/m', max_concurrency => 1)"),
	'1800|101|1200', 'and those that share an input with it');
$fake->script('m');
$fake->script('m', { behaviour => 'slow-300' });
is($s->value("SELECT count(embedding) FROM llm_embed_batch($thousand, model => 'gemini/m')"), 1000, 'rows that wait for a slow pack before them');
$fake->script('m');

# An input that makes the provider refuse all that came with it is found, and alone has the error.

$gw->add_models($_, 'embed-refuses', {%price}) for map { $_->{name} } @dialects;

# The words at those places of 1,000 inputs.
sub with_words
{
	my (%words) = @_;
	return '(SELECT array_agg(CASE i ' . join(' ', map { "WHEN $_ THEN '$words{$_}'" } sort keys %words) . q{ ELSE 'text ' || i END ORDER BY i) FROM generate_series(1, 1000) i)};
}
for my $case (
	# name, place and word of the bad input, class, requests
	[ 'openai', 500, 'poison',  'invalid_request', 2 + 2 * 10 ],
	[ 'azure',  1,   'a curse', 'content_policy',  2 + 2 * 10 ],
	[ 'gemini', 400, 'a flood', 'context_length',  10 + 2 * 7 ],
	[ 'ollama', 1000, 'poison', 'invalid_request', 4 + 2 * 8 ])
{
	my ($name, $place, $word, $class, $most) = @$case;
	for my $concurrency (1, 32)
	{
		my $what = "$name, $concurrency at a time: a bad input";
		my $before = $s->value('SELECT coalesce(max(request_id), 0) FROM llm_requests');
		$requests = requests_of("SELECT count(embedding), string_agg(idx || ' ' || error_class, ','), string_agg(idx::text, ',' ORDER BY ordinality) = string_agg(idx::text, ',' ORDER BY idx),
			max(embedding::text) FILTER (WHERE idx = 501) FROM llm_embed_batch(" . with_words($place => $word) . ", model => '$name/embed-refuses', max_concurrency => $concurrency) WITH ORDINALITY");
		like($r->{out}, qr/^999\|$place $class\|t\|/, "$what: alone has an error") or diag($r->{err});
		vector_ok($r->{out} =~ s/.*\|//r, (vectors(16, 'text 501'))[0], "$what: the others have their own vectors");
		cmp_ok(scalar @$requests, '<=', $most, "$what: is found by halves");
		is($s->value("SELECT count(*), sum(cost_usd) FILTER (WHERE status = 'error'), count(*) FILTER (WHERE status = 'error' AND error_class <> '$class') FROM llm_requests WHERE request_id > $before"),
			@$requests . '|0|0', "$what: each request in the ledger, and what was refused is free");
	}
}
is($s->value('SELECT count(embedding), string_agg(idx::text, \',\' ORDER BY idx) FILTER (WHERE error_class IS NOT NULL) FROM llm_embed_batch(' . with_words(3 => 'poison', 4 => 'poison', 98 => 'flood', 300 => 'poison 2') . ' || ARRAY[\'poison\'], model => \'gemini/embed-refuses\')'),
	'996|3,4,98,300,1001', 'several, and one that is there twice');
is($s->value(q{SELECT string_agg(concat_ws(' ', idx, error_class), ',' ORDER BY idx) FROM llm_embed_batch('{poison,b}', model => 'gemini/embed-refuses', max_concurrency => 1)}), '1 invalid_request,2', 'one of two');
is($s->value(q{SELECT string_agg(concat_ws(' ', idx, error_class), ',' ORDER BY idx) FROM llm_embed_batch('{poison}', model => 'gemini/embed-refuses')}), '1 invalid_request', 'alone');

# Where it is not an input that is refused, that is soon known.
for my $concurrency (1, 4)
{
	$requests = requests_of("SELECT count(*), count(embedding), min(error_class), max(error_class) FROM llm_embed_batch((SELECT array_agg('poison ' || i) FROM generate_series(1, 1000) i), model => 'gemini/embed-refuses', max_concurrency => $concurrency)");
	is($r->{out}, '1000|0|invalid_request|invalid_request', 'all are refused');
	cmp_ok(scalar @$requests, '<=', 10 + $concurrency * 2 * (4 * 7 + 1), 'in a bounded number of requests');
}
$fake->script('embed-refuses', { behaviour => 'slow-5000', repeat => 'forever' });
$gw->sql(q{UPDATE llm_models SET total_timeout = '1 s' WHERE name = 'embed-refuses'});
$requests = requests_of(q{SELECT count(*), min(error_class) FROM llm_embed_batch('{a,b,c}', model => 'openai/embed-refuses')});
is("$r->{out} of " . @$requests, '3|timeout of 2', 'other errors are those of all inputs');
$fake->script('embed-refuses');

# Never another model

$gw->add_provider('other', $root, { kind => "'ollama'" });
$gw->add_models('other', 'm', 'second', {%price});
$gw->add_models('openai', 'chat-only', { capabilities => "'{chat}'" });
$gw->add_models('openai', 'embedder', 'status-503', { capabilities => "'{embedding}'" });
$gw->add_provider('anthropic', "$root/anthropic", { kind => "'anthropic'" });
$gw->add_models('anthropic', 'claude');

sub rules
{
	my @models = @_;
	my $rank = 0;
	$gw->sql('DELETE FROM llm_routing_rules; ' . join '; ', map { 'INSERT INTO llm_routing_rules(task, model, rank) VALUES (\'embedding\', ' . literal($_) . ', ' . ++$rank . ')' } @models);
	return;
}

rules('openai/status-503', 'other/second');
$requests = requests_of(q{SELECT llm_embed('x')});
error_ok($r, { sqlstate => 'LG004', detail => qr{other/second: not tried: embeddings never change model} }, 'no second model');
is_deeply([ map { $_->{body}{model} } @$requests ], [ 'status-503', 'status-503' ], 'nobody else is asked');
is($s->value("SELECT count(*) FILTER (WHERE error_class = 'overloaded'), count(embedding) FROM llm_embed_batch('{x,y}')"), '2|0', 'nor in a batch');

rules('openai/m', 'other/second', 'other/m');
$fake->script({ model => 'm', path => '/v1' }, { behaviour => 'status-503', repeat => 'forever' });
vector_ok($s->value(q{SELECT llm_embed('a black cat')}), $cat, 'another provider of the same model');
$row = recorded();
is_deeply([ @{$row}{qw(provider model attempts fallback)} ], [ 'other', 'm', 3, 'true' ], 'a fallback');
$fake->reset;

rules('openai/chat-only', 'anthropic/claude', 'openai/embedder', 'other/second');
$requests = requests_of(q{SELECT array_length(llm_embed('x'), 1)});
is($r->{out} . $requests->[0]{body}{model}, '16embedder', 'what makes no embeddings is dropped');
is(recorded()->{fallback}, 'false', 'which is no fallback');
rules('openai/chat-only', 'anthropic/claude');
error_ok($s->run(q{SELECT llm_embed('x')}),
	{ sqlstate => 'LG005', detail => qr{openai/chat-only: not tried: lacks embedding\nanthropic/claude: not tried: kind "anthropic" makes no embeddings}, hint => qr/capabilities.*INSERT INTO llm_routing_rules\(task, model\)/ },
	'no model that does');
is($s->value(q{SELECT DISTINCT error_class FROM llm_embed_batch('{x,y}')}), 'no_candidate', 'in a batch');
error_ok($s->run(q{SELECT llm_complete('x', model => 'openai/embedder')}), { sqlstate => 'LG005', detail => qr/makes embeddings, not completions/ }, 'and the other way round');

# how long an input is has no say in which model it is
$gw->add_models('openai', 'short', { context_window => 10 });
rules('openai/short', 'other/second');
error_ok($s->run(q{SELECT llm_embed(repeat('x', 100))}),
	{ sqlstate => 'LG005', detail => qr{openai/short: not tried: the input of about 25 tokens is longer than its context window of 10\nother/second: not tried: embeddings never change model} },
	'an input that is too long');
is($s->value(q{SELECT count(embedding) FROM llm_embed_batch((SELECT array_agg('text ' || i) FROM generate_series(1, 100) i))}), 100, 'the window is for each input');

# nor does a batch change it when the rules change meanwhile
rules('slow/slow-300', 'openai/m');
$s->start("SELECT count(embedding) FROM llm_embed_batch($thousand, max_concurrency => 2)");
$gw->wait_in_call($s);
rules('openai/m', 'slow/slow-300');
is($s->finish->{out}, 1000, 'a batch while the rules change');
is($s->value(q{SELECT string_agg(DISTINCT model, ',') FROM (SELECT model FROM llm_requests ORDER BY request_id DESC LIMIT 10) t}), 'slow-300', 'keeps its model');
rules('openai/m');

# alias
$gw->sql(q{INSERT INTO llm_routing_rules(alias, model) VALUES ('vec', 'openai/m')});
vector_ok($s->value(q{SELECT llm_embed('a black cat', model => 'vec')}), $cat, 'an alias');

# Contents in the ledger

$gw->admin->value('SET llm_gateway.log_content = on');
$gw->admin->value(q{SELECT count(*) FROM llm_embed_batch('{"a \"b\"",c}')});
is($s->value('SELECT prompt, response IS NULL FROM llm_requests ORDER BY request_id DESC LIMIT 1'), '["a \"b\"", "c"]|t', 'log_content: the inputs');
$gw->admin->value(q{SELECT llm_embed('alone') IS NULL});
is(recorded()->{prompt}, 'alone', 'log_content: of one the input itself');
$gw->admin->value('RESET llm_gateway.log_content');

# Cancel

for my $sql (q{SELECT llm_embed('x', model => 'openai/silent')}, q{SELECT * FROM llm_embed_batch('{x,y}', model => 'openai/silent')})
{
	$s->start($sql);
	$gw->wait_in_call($s);
	my $when = time;
	$gw->admin->run('SELECT pg_cancel_backend(' . $s->pid . ')');
	$r = $s->finish;
	error_ok($r, { sqlstate => '57014' }, 'cancelled');
	cmp_ok($r->{ended} - $when, '<', PROMPTLY, 'at once');
	ok($gw->drained, 'booked');
	$row = recorded();
	is_deeply([ @{$row}{qw(operation status)} ], [ 'embed', 'cancelled' ], 'as cancelled');
}

# Privileges

$gw->sql('CREATE ROLE nobody LOGIN; CREATE ROLE caller LOGIN');
my ($nobody, $caller) = map { $gw->session(undef, user => $_) } qw(nobody caller);
for my $sql (q{SELECT llm_embed('x')}, q{SELECT * FROM llm_embed_batch('{x}')})
{
	error_ok($nobody->run($sql), { sqlstate => '42501' }, "not granted: $sql");
}
$gw->sql(q{SELECT llm_grant('caller')});
is($caller->value(q{SELECT array_length(llm_embed('x'), 1)}), 16, 'granted');
is($caller->value(q{SELECT count(embedding) FROM llm_embed_batch('{x,y}')}), 2, 'granted, in a batch');
$gw->sql(q{SELECT llm_revoke('caller')});
error_ok($caller->run(q{SELECT llm_embed('x')}), { sqlstate => '42501' }, 'revoked');

# Many large vectors

$gw->sql(q{UPDATE llm_providers SET first_byte_timeout = '3 min', total_timeout = '3 min'});
is($s->value("SELECT count(*), sum(array_length(embedding, 1)), bool_and(embedding IS NOT NULL) FROM llm_embed_batch($thousand, model => 'openai/m', dimensions => 1536)"), '1000|1536000|t', '1,000 × 1,536 numbers');
is($s->value("SELECT count(*), sum(array_length(embedding, 1)) FROM llm_embed_batch($thousand, model => 'mock-embedding', dimensions => 1536)"), '1000|1536000', 'of the mock provider, too');
is($s->value(q{SELECT array_length(llm_embed('x', model => 'mock-embedding', dimensions => 65536), 1)}), 65536, 'the largest');

$gw->no_crash_ok;
done_testing();
