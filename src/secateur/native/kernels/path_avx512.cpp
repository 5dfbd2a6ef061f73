#define SECATEUR_BYTES 64
#define SECATEUR_PATH path_avx512
#define SECATEUR_HALVES halves_avx512
#include "rows.inc"
#include "halves.inc"
