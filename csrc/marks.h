// What the byte beside a sample's score says. Mirrors stprune/reference/table_update.py.
#pragma once

#include <stdint.h>

namespace stprune {

constexpr uint8_t SCORED = 1;   // in this epoch
constexpr uint8_t FRESH = 2;    // scored since ranks last exchanged their scores
constexpr uint8_t TRAINED = 4;  // trained on in this epoch
constexpr uint8_t KNOWN = 8;    // scored at least once
// The bits above these number the batch, from 1 to BATCHES: an id with another number has not come in this batch
// before.
constexpr int BATCH_SHIFT = 4;
constexpr int64_t BATCHES = 15;

}  // namespace stprune
