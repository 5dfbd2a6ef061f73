// Half a line of bytes: the instruction in vectors of 32 bytes, for what is left of a map, and for small ones.
#define SECATEUR_BYTES 32
#define SECATEUR_VNNI
#define SECATEUR_HALF_LINE
#include "bytes.inc"
