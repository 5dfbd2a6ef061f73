#define SECATEUR_BYTES 16
#define SECATEUR_PATH path_portable
#define SECATEUR_HALVES halves_portable
#include "rows.inc"
#include "halves.inc"
