// The product that both recurrences are made of, with weights that stay on the chip: acc[128 x N] = W[128 x K] X[K x N].
//
// Two warpgroups hold 64 rows each. Of every 16 columns of W in turn, one lies in registers (the A operand of wgmma) and
// the next in shared memory: alternating them spreads the reads of shared memory evenly, which was worth 0.4 us a step.
// X comes tile by tile (64 of K x N) through a ring of stages that one producer thread fills by the copy engine.
#pragma once
#include "primitives.cuh"

constexpr int TILE_K = 64;           // numbers of K in a tile: 128 bytes, the width of a swizzle atom
constexpr int WEIGHT_TILE = 64 * 128;  // bytes of 64 rows x TILE_K weights

template <int STAGES_, int BYTES_>
struct Ring {
  static constexpr int STAGES = STAGES_, BYTES = BYTES_;
  uint32_t tiles, full, empty;  // addresses: the first stage, its barriers
  int stage = 0;
  uint32_t parity = 0;

  DEVICE Ring(uint32_t tiles, uint32_t barriers) : tiles(tiles), full(barriers), empty(barriers + 8 * STAGES) {}
  // By one thread, before anybody uses the ring.
  DEVICE void init() const {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 2);  // one arrival from each of the two warpgroups
    }
  }
  DEVICE void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
  DEVICE uint32_t previous() const { return stage == 0 ? STAGES - 1 : stage - 1; }
};

// Weights of one warpgroup in registers: for every tile the first and third of its four slices of 16.
template <int TILES>
using Registers = uint32_t[TILES][2][4];

// Where the warpgroup's slices in shared memory lie: a tile holds the second and fourth slices of two tiles.
DEVICE constexpr int shared_slice(int tile, int slice) { return (tile & 1) * 2 + slice / 2; }

// One sub-batch's product. The last stage is still being read on return: the caller waits with wgmma_wait<0>() and then
// calls release_last.
template <int TILES, int TILES_PER_STAGE, int N, int M, class RingT>
DEVICE void multiply(float (&acc)[M], const Registers<TILES>& a, uint32_t weights, RingT& ring, bool leader,
                     uint32_t* status, int step, int sub) {
  constexpr int STAGES = (TILES + TILES_PER_STAGE - 1) / TILES_PER_STAGE;
#pragma unroll
  for (int i = 0; i < STAGES; i++) {
    barrier_wait(ring.full + 8 * ring.stage, ring.parity, status, STAGE_FULL, step, sub);
    const uint32_t stage = descriptor(ring.tiles) + ring.stage * (RingT::BYTES / 16);
    wgmma_fence();
#pragma unroll
    for (int z = 0; z < TILES_PER_STAGE; z++) {
      const int tile = i * TILES_PER_STAGE + z;
      if (tile < TILES) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const uint32_t x = stage + z * (N * 128 / 16) + k * 2;
          if (k % 2 == 0)
            Wgmma<N>::from_registers(acc, a[tile][k / 2], x, tile + k != 0);
          else
            Wgmma<N>::from_shared(acc, weights + (tile / 2) * (2 * WEIGHT_TILE / 16) + shared_slice(tile, k) * 2, x,
                                  tile + k != 0);
        }
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0 && leader) barrier_arrive(ring.empty + 8 * ring.previous());
    ring.advance();
  }
}
template <class RingT>
DEVICE void release_last(const RingT& ring, bool leader) {
  if (leader) barrier_arrive(ring.empty + 8 * ring.previous());
}

// The producer's side of multiply: N sequences of X at time t, columns `column` + K. `first` rotates the order of the tiles,
// so that the blocks do not all read the same lines of L2 at the same time.
template <int TILES, int TILES_PER_STAGE, int N, class RingT>
DEVICE void load(RingT& ring, const TensorMap& map, int column, int sequence, int t, int first, uint32_t* status,
                 int step, int sub) {
  constexpr int STAGES = (TILES + TILES_PER_STAGE - 1) / TILES_PER_STAGE;
  for (int i = 0; i < STAGES; i++) {
    barrier_wait(ring.empty + 8 * ring.stage, ring.parity ^ 1, status, STAGE_EMPTY, step, sub);
    const uint32_t full = ring.full + 8 * ring.stage, to = ring.tiles + ring.stage * RingT::BYTES;
    const int tiles = min(TILES - i * TILES_PER_STAGE, TILES_PER_STAGE);
    barrier_expect(full, tiles * N * 128);
#pragma unroll
    for (int z = 0; z < TILES_PER_STAGE; z++) {
      int tile = i * TILES_PER_STAGE + z + first;
      if (tile >= TILES) tile -= TILES;
      if (z < tiles) copy_in(to + z * N * 128, map, column + tile * TILE_K, sequence, t, full);
    }
    ring.advance();
  }
}
