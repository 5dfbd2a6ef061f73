#define SECATEUR_BYTES 32
#define SECATEUR_PATH path_avx2
#include "rows.inc"
