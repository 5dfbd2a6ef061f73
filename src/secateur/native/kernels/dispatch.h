// Which instruction set runs.
#pragma once
#include "paths.h"

const Path& chosen_path();
const Halves& chosen_halves();
const Bytes& chosen_bytes();
