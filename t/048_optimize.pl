# Calls that are optimized for cost, quality or speed: which of those that the rules name is first, who says
# so, and that balancing is left to those between which it makes no difference.
use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(row);

my $gw = LlmGateway->new(name => 'optimize', fake => undef);
my $s = $gw->session;

$gw->sql(q{
	DELETE FROM llm_routing_rules;
	INSERT INTO llm_providers(name, kind) VALUES ('a', 'mock'), ('b', 'mock'), ('c', 'mock');
	INSERT INTO llm_models(provider, name, quality, input_price, output_price) VALUES
		('a', 'big', 90, 10, 10), ('a', 'mid', 60, 2, 2), ('b', 'mid', 60, 4, 4), ('b', 'small', 40, 1, 1),
		('c', 'free', 10, 0, 0), ('c', 'unpriced', 50, NULL, NULL);
	INSERT INTO llm_routing_rules(alias, model, rank) VALUES
		('any', 'unpriced', 5), ('any', 'big', 10), ('any', 'b/mid', 15), ('any', 'mid', 20), ('any', 'small', 30), ('any', 'free', 40);
});

# The candidates, in their order
sub order
{
	my ($model, $more) = @_;
	return $s->value("SELECT string_agg(provider || '/' || model, ' ' ORDER BY rank) FROM llm_route('hi', model => '$model'" . ($more ? ", $more" : '') . ')');
}

# Who answers so many calls, one after the other
sub answers
{
	my ($n, $model, $more) = @_;
	return $s->value("SELECT string_agg(d.provider, '' ORDER BY g) FROM generate_series(1, $n) g, llm_complete_detail('hi ' || g, model => '$model'" . ($more ? ", $more" : '') . ') d');
}

sub count_of
{
	my ($who, $list) = @_;
	return scalar(() = $list =~ /$who/g);
}

# Each aim

is(order('any'), 'c/unpriced a/big b/mid a/mid b/small c/free', 'without an aim the rules decide');
is(order('any', q{optimize => 'cost'}), 'c/free b/small a/mid b/mid a/big c/unpriced', 'cost: what is free, then by price, then what nobody knows');
is(order('any', q{optimize => 'quality'}), 'a/big b/mid a/mid c/unpriced b/small c/free', 'quality: the best first, equals as the rules have them');
is(order('any', q{optimize => 'speed'}), 'c/unpriced a/big b/mid a/mid b/small c/free', 'speed: while nothing is known, the rules decide');
is(order('any', q{optimize => 'none'}), order('any'), 'none');
is(order('any', q{optimize => 'cost', max_tokens => 1}), 'c/free b/small a/mid b/mid a/big c/unpriced', 'with max_tokens');

$gw->sql(q{UPDATE llm_models SET input_price = 2000, output_price = 0 WHERE name = 'small'; UPDATE llm_models SET input_price = 0, output_price = 1 WHERE name = 'big'});
is(order('any', q{optimize => 'cost'}), 'c/free a/big a/mid b/mid b/small c/unpriced', 'cost is that of the call, not a price');
is($s->value(q{SELECT string_agg(provider || '/' || model, ' ' ORDER BY rank) FROM llm_route('hi', model => 'any', optimize => 'cost', max_tokens => 100000)}),
	'c/free b/small a/big a/mid b/mid c/unpriced', 'so it depends on how long the answer may get');
$gw->sql(q{UPDATE llm_models SET input_price = 1, output_price = 1 WHERE name = 'small'; UPDATE llm_models SET input_price = 10, output_price = 10 WHERE name = 'big'});

# Whose word counts

$s->value(q{SET llm_gateway.default_optimize = 'cost'});
is(order('any'), 'c/free b/small a/mid b/mid a/big c/unpriced', 'default_optimize');
is(order('any', q{optimize => 'quality'}), 'a/big b/mid a/mid c/unpriced b/small c/free', 'the argument outranks it');
is(order('any', q{optimize => 'none'}), 'c/unpriced a/big b/mid a/mid b/small c/free', 'also to say that nothing is to be optimized');
is($s->value(q{SELECT llm_estimate_cost('hi', 'any')}), '0', 'llm_estimate_cost follows it');
$gw->sql(q{UPDATE llm_tasks SET optimize = 'quality' WHERE name = 'coding'});
is(order('any', q{task => 'coding'}), 'a/big b/mid a/mid c/unpriced b/small c/free', 'a task outranks default_optimize');
is(order('any', q{task => 'coding', optimize => 'cost'}), 'c/free b/small a/mid b/mid a/big c/unpriced', 'and is outranked by the argument');
is(order('any', q{task => 'chat'}), 'c/free b/small a/mid b/mid a/big c/unpriced', 'a task that says nothing');
$s->value(q{RESET llm_gateway.default_optimize});

# The call, its record, and what llm_route says of it

my $r = row($s, q{SELECT provider, model, fallback FROM llm_complete_detail('hi', model => 'any', optimize => 'cost')});
is_deeply($r, { provider => 'c', model => 'free', fallback => 'false' }, 'the call goes there, and that is no fallback');
is($s->value(q{SELECT optimize FROM llm_requests ORDER BY request_id DESC LIMIT 1}), 'cost', 'it is recorded what it was optimized for');
$s->value(q{SELECT llm_complete('hi', model => 'any', task => 'coding')});
is($s->value(q{SELECT optimize FROM llm_requests ORDER BY request_id DESC LIMIT 1}), 'quality', 'also where the task says it');
$gw->sql(q{SELECT llm_breaker_open('c')});
$r = row($s, q{SELECT provider, model, fallback FROM llm_complete_detail('hi', model => 'any', optimize => 'cost')});
is_deeply($r, { provider => 'b', model => 'small', fallback => 'true' }, 'when the cheapest is away, the next cheapest');
$gw->sql(q{SELECT llm_breaker_reset('c')});

# Who has no money, and would have been asked first if it had

sub without_money
{
	my ($provider, $args, $limit) = @_;
	$gw->sql("INSERT INTO llm_budgets (name, limit_usd, provider) VALUES ('of one', " . ($limit // 0) . ", '$provider')");
	my $answer = $s->value("SELECT provider || '/' || model || ' ' || fallback FROM llm_complete_detail('hi', $args)");
	$gw->sql('DELETE FROM llm_budgets');
	return $answer;
}
my $cheapest = q{model => 'any', optimize => 'cost'};
is(without_money('c', $cheapest), 'b/small true', 'the cheapest has no money: a fallback');
is(without_money('a', $cheapest), 'c/free false', 'one that is dearer has none');
$gw->sql(q{UPDATE llm_providers SET weight = 0 WHERE name = 'c'});
is(without_money('c', $cheapest), 'b/small false', 'a spare is cheaper, but takes nobody\'s place');
$gw->sql(q{UPDATE llm_providers SET weight = 0 WHERE name = 'b'; UPDATE llm_providers SET weight = 1 WHERE name = 'c'});
is(without_money('a', q{model => 'mid', optimize => 'quality'}), 'b/mid true', 'a spare takes the place of its equal');
$gw->sql(q{UPDATE llm_providers SET weight = 1 WHERE name = 'b'; UPDATE llm_models SET input_price = 0, output_price = 0 WHERE name = 'small'});
is(without_money('b', $cheapest), 'c/free true', 'between equals the rules decide');
is(without_money('c', $cheapest), 'b/small false', 'and put this one behind');
$gw->sql(q{UPDATE llm_models SET input_price = 1, output_price = 1 WHERE name = 'small';
	INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('known', 'unpriced', 1), ('known', 'small', 2)});
is(without_money('b', q{model => 'known', optimize => 'cost'}), 'c/unpriced true', 'what nobody knows comes after it');
is(without_money('c', q{model => 'any'}, $_), 'a/big false', "what has no price is no candidate under a budget of $_") for 100, 0;

is($s->value(q{SELECT string_agg(regexp_replace(reason, '[0-9]+', 'N'), ' | ' ORDER BY rank) FROM llm_route('hi', model => 'any', optimize => 'cost') WHERE rank < 3}),
	'first by cost (routing rule N) | fallback by cost (routing rule N)', 'the reason says so');
is($s->value(q{SELECT string_agg(reason, ' | ' ORDER BY rank) FROM llm_route('hi', model => 'mid', optimize => 'speed')}),
	'first by speed: the call names this model | fallback by speed: the call names this model', 'of a named model');
is($s->value(q{SELECT provider || '/' || model || ': ' || reason FROM llm_route('hi', optimize => 'cost') WHERE rank = 1}),
	'c/free: first by cost: no routing rule applies', 'without a rule');
is($s->value(q{SELECT string_agg(model || ' ' || left(reason, 7), ', ' ORDER BY rank) FROM llm_route('hi', model => 'any', optimize => 'cost', min_tier => 'premium')}) =~ s/dropped//gr,
	'unpriced , big , mid , mid , small , free ', 'none may answer: as the rules have them');
$gw->sql(q{UPDATE llm_models SET tier = 'premium' WHERE name IN ('big', 'unpriced')});
is(order('any', q{optimize => 'cost', min_tier => 'premium'}), 'a/big c/unpriced b/mid a/mid b/small c/free', 'those that may not are behind');
$gw->sql(q{UPDATE llm_models SET tier = 'standard'});

# Speed

$gw->sql(q{
	INSERT INTO llm_providers(name, kind, options) VALUES ('slow', 'mock', '{"latency_ms": 1000}'), ('quick', 'mock', NULL), ('fresh', 'mock', NULL);
	INSERT INTO llm_models(provider, name) VALUES ('slow', 'race'), ('quick', 'race'), ('fresh', 'race');
});
$s->value(q{SELECT count(llm_complete('hi', model => p || '/race')) FROM unnest('{slow,quick,slow,quick}'::text[]) p});
is(order('race', q{optimize => 'speed'}), 'quick/race slow/race fresh/race', 'speed: the fastest, the slower, then who has not answered yet');
is(answers(8, 'race', q{optimize => 'speed'}), 'quick' x 8, 'and the calls go there');

# Balancing: who is dearer takes no part in it, and nobody's turn

my $some = answers(1, 'mid');
is(answers(7, 'mid', q{optimize => 'cost'}), 'a' x 7, 'the cheaper of two providers gets all calls');
$some .= answers(9, 'mid');
is(count_of('a', $some), 5, 'calls without an aim have their exact shares all the same');

$gw->sql(q{
	INSERT INTO llm_models(provider, name, input_price, output_price) VALUES
		('a', 'twin', 3, 3), ('b', 'twin', 3, 3), ('c', 'twin', 5, 5), ('a', 'dear', 9, 9), ('b', 'dear', 9, 9);
	INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('two', 'dear', 10), ('two', 'twin', 20);
});
like(answers(20, 'two', q{optimize => 'cost'}), qr/^(ab|ba)\1{9}$/, 'equal prices are balanced, exactly: theirs is the turn of a call');
like(answers(20, 'two'), qr/^(ab|ba)\1{9}$/, 'and nobody else has lost one');
like(answers(20, 'twin', q{optimize => 'cost'}), qr/^(ab|ba)\1{9}$/, 'a named model, as well');
$some = answers(18, 'twin');
is(join('', map { count_of($_, $some) } qw(a b c)), '666', 'without an aim, all three');

$gw->sql(q{UPDATE llm_models SET weight = 0 WHERE provider = 'a' AND name = 'twin'});
is(order('twin', q{optimize => 'cost'}), 'b/twin c/twin a/twin', 'a spare is last, whatever it costs');

# What is prepared with the configuration holds as long as what it was made from

$gw->sql(q{INSERT INTO llm_providers(name, base_url) VALUES ('far', 'https://llm.example.com/v1'); INSERT INTO llm_models(provider, name) VALUES ('far', 'far')});
my $dropped = q{SELECT reason LIKE 'dropped: host "llm.example.com"%' FROM llm_route('hi', model => 'far')};
is($s->value($dropped), 'f', 'a provider that may be talked to');
$s->value(q{SET llm_gateway.allowed_hosts = 'other.example.com'});
is($s->value($dropped), 't', 'a session that allows other hosts');
$s->value(q{SET llm_gateway.allowed_hosts = 'llm.example.com'});
is($s->value($dropped), 'f', 'allows it again');
$s->value(q{RESET llm_gateway.allowed_hosts});
is($s->value($dropped), 'f', 'or any');

$gw->sql(q{CREATE ROLE team; CREATE ROLE caller LOGIN; SELECT llm_grant('caller'); GRANT team TO caller;
	INSERT INTO llm_routing_rules(alias, model, rank, role) VALUES ('ours', 'a/big', 1, 'team'), ('ours', 'b/small', 2, NULL)});
my $caller = $gw->session('postgres', user => 'caller');
my $first = q{SELECT model FROM llm_route('hi', model => 'ours') WHERE rank = 1};
is($caller->value($first), 'big', 'a rule for a role');
$gw->sql('ALTER ROLE team RENAME TO others');
is($caller->value($first), 'small', 'that has another name now');
$gw->sql('ALTER ROLE others RENAME TO team');
is($caller->value($first), 'big', 'and its own again');
$gw->sql('REVOKE team FROM caller');
is($caller->value($first), 'small', 'and one member less');
$gw->sql('DROP ROLE team; CREATE ROLE team; GRANT team TO caller');
is($caller->value($first), 'big', 'a new role of that name');

# Embeddings

$gw->sql(q{
	INSERT INTO llm_models(provider, name, input_price, capabilities) VALUES
		('a', 'vectors', 5, '{embedding}'), ('b', 'vectors', 3, '{embedding}'), ('c', 'cheap vectors', 1, '{embedding}');
	INSERT INTO llm_routing_rules(task, model, rank) VALUES ('embedding', 'vectors', 10), ('embedding', 'cheap vectors', 20);
	UPDATE llm_tasks SET optimize = 'cost' WHERE name = 'embedding';
});
$s->value(q{SELECT llm_embed('hi')});
is($s->value(q{SELECT provider || '/' || model || ' ' || optimize FROM llm_requests ORDER BY request_id DESC LIMIT 1}), 'b/vectors cost', 'embeddings keep their model, and have it from where it is cheapest');
for my $provider (qw(c b))
{
	$gw->sql("INSERT INTO llm_budgets (name, limit_usd, provider) VALUES ('of one', 0, '$provider')");
	$s->value(q{SELECT llm_embed('hi')});
	is($s->value(q{SELECT provider || ' ' || fallback || coalesce(' for ' || passed_over, '') FROM llm_requests ORDER BY request_id DESC LIMIT 1}),
		{ c => 'b false', b => 'a true for b' }->{$provider}, "provider $provider has no money");
	$gw->sql('DELETE FROM llm_budgets');
}
$s->value(q{SELECT count(*) FROM llm_embed_batch(ARRAY(SELECT g::text FROM generate_series(1, 50) g), optimize => 'cost')});
is($s->value(q{SELECT provider || '/' || model FROM llm_requests ORDER BY request_id DESC LIMIT 1}), 'b/vectors', 'many of them, too');

$gw->no_crash_ok;
done_testing();
