#define SECATEUR_BYTES 64
#define SECATEUR_CODES bytes_avx512_vnni
#define SECATEUR_VNNI
#include "bytes.inc"
