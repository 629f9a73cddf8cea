/*-------------------------------------------------------------------------
 *
 * ledger_events.h
 *	  What circuit breakers did: rows of llm_breaker_events, and who is told.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_EVENTS_H
#define LLMGW_LEDGER_EVENTS_H

#include "utils/timestamp.h"

#include "endpoint.h"
#include "ledger_tables.h"

/* where those who LISTEN are told */
#define LLMGW_CHANNEL		"llm_gateway"

/*
 * Writes a row for each event and, when they are committed, notifies the channel
 * of each with a JSON object: event ("breaker"), provider, from, to, reason, at.
 * In a transaction of its own; where the extension is not installed, nobody is
 * told of anything.
 */
extern void llmgw_events_write(LlmTables *tables, const LlmBreakerEvent *events, int n);

#endif							/* LLMGW_LEDGER_EVENTS_H */
