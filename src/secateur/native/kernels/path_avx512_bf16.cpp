#define SECATEUR_BYTES 64
#define SECATEUR_HALVES halves_avx512_bf16
#define SECATEUR_BF16
#include "halves.inc"
