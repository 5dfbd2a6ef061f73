#define SECATEUR_BYTES 16
#define SECATEUR_PATH path_portable
#include "rows.inc"
