#define SECATEUR_BYTES 32
#define SECATEUR_PATH path_avx2
#define SECATEUR_HALVES halves_avx2
#include "rows.inc"
#include "halves.inc"
