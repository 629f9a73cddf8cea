package DialectTest;

=head1 NAME

DialectTest - what the tests of single dialects share

=head1 SYNOPSIS

    use DialectTest qw(row chat request_of tool);
    DialectTest::use_session($gw, $session);

=cut

use strict;
use warnings;

use Encode qw(encode);
use Exporter qw(import);
use JSON::PP qw(decode_json);
use Test::More;

use LlmGateway qw(literal);

our @EXPORT_OK = qw(row chat request_of tool);

my ($gw, $session);
my $json = JSON::PP->new->canonical->utf8(0);

# Whom to ask: the LlmGateway, and one of its sessions.
sub use_session
{
	($gw, $session) = @_;
	return;
}

=head2 row($call)

The row of llm_chat or llm_complete_detail, as a hash.

=cut

sub row
{
	my ($call) = @_;

	# that a key was refused, or no credit left, is remembered: that is a test of its own
	$gw->forget;
	return decode_json($session->value(encode('UTF-8', "SELECT row_to_json(r) FROM $call AS r")));
}

=head2 chat($messages, %arguments)

The row of llm_chat; a text is one message of a user.

=cut

sub chat
{
	my ($messages, %arguments) = @_;
	$messages = $json->encode(ref $messages ? $messages : [ { role => 'user', content => $messages } ]);
	my $list = join ', ', literal($messages), map { "$_ => " . (ref $arguments{$_} ? literal($json->encode($arguments{$_})) : literal($arguments{$_})) } sort keys %arguments;
	return row("llm_chat($list)");
}

=head2 request_of($code)

Calls it, and returns the only request that it made.

=cut

sub request_of
{
	my ($call) = @_;
	my $requests = $gw->requests($call);
	is(scalar @$requests, 1, 'one request');
	return $requests->[0];
}

=head2 tool($name, %more)

A tool as OpenAI's API takes it.

=cut

sub tool { my ($name, %more) = @_; return { type => 'function', function => { name => $name, %more } } }

1;
