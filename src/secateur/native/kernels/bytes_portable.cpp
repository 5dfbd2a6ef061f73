#define SECATEUR_BYTES 16
#define SECATEUR_CODES bytes_portable
#include "bytes.inc"
