#define SECATEUR_BYTES 64
#define SECATEUR_CODES bytes_avx512
#include "bytes.inc"
