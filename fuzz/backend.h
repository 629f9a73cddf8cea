/*-------------------------------------------------------------------------
 *
 * backend.h
 *	  What the fuzzed modules need of a server, in a program of its own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_FUZZ_BACKEND_H
#define LLMGW_FUZZ_BACKEND_H

extern void fuzz_free_all(void);

/* a claim that does not hold is a finding */
#define CLAIM(x) \
	do { \
		if (!(x)) \
		{ \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif							/* LLMGW_FUZZ_BACKEND_H */
