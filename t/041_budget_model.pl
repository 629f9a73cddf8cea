# All states of two budgets (t/model/budget_math_model.c), and mistakes that have to be found.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use ModelTest qw(check_model);
use Test::More;

# Mistakes of who charges budgets, rather than of the arithmetic: see the model.
my $includes = '#include "budget_math.h"';

check_model('budget_math',
	[ 'locks are taken in any order', $includes, "$includes\n#undef FIRST_LOCK\n#define FIRST_LOCK(a) (a)" ],
	[ 'locks are not taken', $includes, "$includes\n#undef LOCKS_ALL\n#define LOCKS_ALL false" ],
	[ 'room on one budget is enough', $includes, "$includes\n#undef NEEDS_ALL_ROOM\n#define NEEDS_ALL_ROOM false" ],
	[ 'a threshold is passed when it is reached', '* LLMGW_WHOLE > (int128) limit', '* LLMGW_WHOLE >= (int128) limit' ],
	[ 'large amounts wrap', '(int128) remaining * LLMGW_WHOLE', 'remaining * LLMGW_WHOLE' ],
	[ 'shares are rounded up', '* fraction / LLMGW_WHOLE);', '* fraction / LLMGW_WHOLE) + 1;' ],
	[ 'reservations do not count', '- account->spent - account->reserved', '- account->spent' ],
	[ 'what is spent does not count', '- account->spent - account->reserved', '- account->reserved' ],
	[ 'what is less than nothing wraps', 'if (amount < PG_INT64_MIN)', 'if (false)' ],
	[ 'sums wrap', 'if (amount > PG_INT64_MAX)', 'if (false)' ],
	[ 'the reserve is for all', '!thresholds->may_use_reserve && ', 'false && ' ],
	[ 'the reserve is for nobody', '!thresholds->may_use_reserve && ', '' ],
	[ 'the best tier costs no more than the next', 'thresholds->premium_above', 'thresholds->standard_above' ],
	[ 'half a nano-dollar of the reserve is given', ' + LLMGW_WHOLE - 1) / LLMGW_WHOLE', ') / LLMGW_WHOLE' ],
	[ 'reservations go into the reserve', 'if (!use_reserve)', 'if (false)' ],
	[ 'nobody may reserve what is kept back', 'if (!use_reserve)', '' ],
	[ 'there is less than no room', 'Max(room, 0)', 'room' ],
	[ 'a budget without a limit has none left', 'return PG_INT64_MAX;
	return clamp', 'return 0;
	return clamp' ],
	[ 'reservations are not added up', '(int128) account->reserved + Max', 'Max' ],
	[ 'what was reserved is kept', 'account->reserved - Max(reserved, 0)', 'account->reserved' ],
	[ 'what was reserved is given back, but not more than was paid', 'account->reserved - Max(reserved, 0)', 'account->reserved - Min(reserved, Max(paid, 0))' ],
	[ 'more is given back than there was', 'Max(account->reserved - Max(reserved, 0), 0)', 'account->reserved - reserved' ],
	[ 'what is not known is paid back', 'account->spent + Max(paid, 0)', 'account->spent + paid' ],
	[ 'payments count up to their reservation', 'account->spent + Max(paid, 0)', 'account->spent + Min(Max(paid, 0), reserved)' ],
	[ 'payments replace one another', '(int128) account->spent + Max', 'Max' ]);

done_testing();
