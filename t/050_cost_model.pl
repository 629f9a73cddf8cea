# Bounds of what a request may cost, held against all that it may cost (t/model/cost_model.c), and
# mistakes that have to be found.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use ModelTest qw(check_model);
use Test::More;

check_model('cost',
	[ 'cached input may be dearer', 'Max(prices->input, Max(cached_price(prices), write_price(prices)))', 'Max(prices->input, write_price(prices))' ],
	[ 'new cached input may be dearer', 'Max(prices->input, Max(cached_price(prices), write_price(prices)))', 'Max(prices->input, cached_price(prices))' ],
	[ 'plain input may be dearer', 'Max(prices->input, Max(cached_price(prices), write_price(prices)))', 'Max(cached_price(prices), write_price(prices))' ],
	[ 'a smaller request may be dearer', 'most = Max(most, sum);', 'most = sum;' ],
	[ 'a tier counts from its first token on', 'largest <= model->price_tiers[range - 1].above_tokens', 'largest < model->price_tiers[range - 1].above_tokens' ],
	[ 'a tier ends where the next begins', 'largest = Min(largest, model->price_tiers[range].above_tokens);', 'largest = largest;' ],
	[ 'without a price there is no bound', 'if (prices.input < 0 || (prices.output < 0 && output_tokens > 0))', 'if (prices.output < 0 && output_tokens > 0)' ],
	[ 'an answer has no price', 'if (prices.input < 0 || (prices.output < 0 && output_tokens > 0))', 'if (prices.input < 0)' ],
	[ 'halves are rounded up', 'room * TOKENS_PER_PRICE + (TOKENS_PER_PRICE - 1) / 2', 'room * TOKENS_PER_PRICE + TOKENS_PER_PRICE / 2' ],
	[ 'what is rounded down fits', 'room * TOKENS_PER_PRICE + (TOKENS_PER_PRICE - 1) / 2', 'room * TOKENS_PER_PRICE' ],
	[ 'the input has to fit', 'if (prices.input < 0 || left < 0)', 'if (prices.input < 0)' ],
	[ 'in the dearest tier, too', 'affordable = Min(affordable, left / prices.output)', 'affordable = Min(PG_INT32_MAX, left / prices.output)' ],
	[ 'no price, no output', 'affordable = 0;', 'affordable = affordable;' ],
	[ 'what does not fit into 64 bits', 'Min(most, PG_INT64_MAX)', 'most' ]);

done_testing();
