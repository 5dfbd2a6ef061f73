#define SECATEUR_BYTES 32
#define SECATEUR_CODES bytes_avx2
#include "bytes.inc"
