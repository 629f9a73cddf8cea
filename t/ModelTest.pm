package ModelTest;

=head1 NAME

ModelTest - modules that only compute, gone through in all their states (t/model/)

=head1 SYNOPSIS

    use ModelTest qw(check_model);
    check_model('breaker', [ 'a stale result counts', 'pass->epoch != breaker->epoch', 'false' ]);

A test that uses it is skipped where LLM_GATEWAY_SKIP_MODELS says why: what it finds does not depend on
the PostgreSQL that it runs with.

=cut

use strict;
use warnings;

use Exporter qw(import);
use File::Spec;
use FindBin;
use PostgreSQL::Test::Utils qw(run_command slurp_file);
use Test::More;

our @EXPORT_OK = qw(check_model);

plan skip_all => $ENV{LLM_GATEWAY_SKIP_MODELS} if $ENV{LLM_GATEWAY_SKIP_MODELS};

my $top = "$FindBin::Bin/..";
my $dir = File::Spec->rel2abs(PostgreSQL::Test::Utils::tempdir());
my ($includes) = run_command([ 'pg_config', '--includedir-server' ]);
my $compiler = $ENV{CC} || 'cc';

# Compiles the model with the given text of the module and runs it: its exit code and its output.
sub search
{
	my ($module, $text) = @_;
	my $macro = uc($module) . '_C';

	open(my $file, '>', "$dir/$module.c") or die "could not write $dir/$module.c: $!";
	print $file $text;
	close($file);
	system($compiler, '-O2', "-D$macro=\"$dir/$module.c\"", "-I$top/src", "-I$includes",
		"$top/t/model/${module}_model.c", '-o', "$dir/$module") == 0
	  or die "could not compile the model of $module";
	my $output = `$dir/$module`;
	return ($? >> 8, $output);
}

=head2 check_model($module, @mistakes)

Goes through src/$module.c with t/model/${module}_model.c, which includes it by the name that a macro
(BREAKER_C, say) has, prints how many states there are, and where something "does not hold" says so
and exits with 1.  A search that finds nothing may have looked for nothing: so the model is also given
copies of the source that are wrong in one place, and has to find it.  Each mistake is a reference to
[what is wrong, text, text instead]; the text is there once.

=cut

sub check_model
{
	my ($module, @mistakes) = @_;
	my $source = slurp_file("$top/src/$module.c");
	my ($status, $output) = search($module, $source);

	is($status, 0, "$module: all of it holds");
	like($output, qr/\d{5,} states/, "$module: it is more than a few states");
	diag($output) if $status != 0;
	note($output);
	for (@mistakes)
	{
		my ($what, $text, $instead) = @$_;
		my $changed = $source;
		my $n = $changed =~ s/\Q$text\E/$instead/g;

		die "$module.c has " . ($n || 'no') . qq( "$text", for: $what) unless $n == 1;
		($status, $output) = search($module, $changed);
		ok($status == 1 && $output =~ /^does not hold/m, "$module: found: $what") or diag($output);
		note((grep { /does not hold/ } split(/\n/, $output))[0] // 'nothing');
	}
	return;
}

1;
