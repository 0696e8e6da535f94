// The LSTM forward recurrence of all T steps in one launch, the recurrent weights on the chip throughout (sm_90a).
//
// A pair of blocks (a cluster) owns 32 units, 128 rows of W_hh; each block of the pair multiplies half of K, reads half
// of h, and hands the other block half of its partial sums through distributed shared memory, so that each finishes all 32
// units of half the sequences. With K whole in a block h alone would be 64 MB of L2 reads a step at H = 2048, 8.5 us; halved
// it is 32. The sequences of a block are several sub-batches. While one is multiplied, the others are on their way from
// gates to h, to L2, to the other blocks' shared memory: a chain as long as one and a half products at H = 2048.
//
// Warps of a block (512 threads): 0-7 multiply, 8-11 finish gates and cells and hold c in float32 registers for all T,
// 12 fetches h, 13 tells the peer what has been read, 14 publishes h, 15 does nothing.
//
// Who waits for whom: h of step t, written by the copy engine, is counted in flags[group][sub-batch][half of K]; the
// fetching warp of each block that reads this half waits for the flag, and then copies. Blocks of a launch must all be
// resident (a cooperative launch), else they would wait for blocks that never start.
#include "resident.cuh"

#ifndef HIDDEN
#define HIDDEN 2048
#endif

struct ForwardArguments {
  TensorMap map;          // h; boxes of 64 units, a sub-batch's width
  TensorMap out;          // h; boxes of 32 units, half a sub-batch's width
  const Element* weight;  // (4H, H), gates i, f, g, o
  const uint2* inputs;    // rows of H x 4 gates: (T, B) of them, or a table's with ids
  const uint8_t* ids;     // (T, B) or null
  const uint8_t* resets;  // (T, B) or null
  const float* c0;        // (B, H)
  uint2* gates;           // (T, B, H) x 4 activated gates, or null
  void* cells;            // (T, B, H) or null
  float* c_n;             // (B, H)
  uint32_t* flags;        // zero; (groups, sub-batches, 2) x FLAG_STRIDE
  uint32_t* status;       // pinned host memory, see give_up
  int cells_kind;         // CELLS_NONE, or the dtype of cells
  int T, B;
  int begin, end;         // sequences of this launch
};
enum CellsKind { CELLS_NONE = 0, CELLS_FLOAT, CELLS_BFLOAT16, CELLS_FLOAT16 };

constexpr int H = HIDDEN;
constexpr int UNITS = 32;                  // of a pair
constexpr int PAIRS = H / UNITS;           // in a group of blocks that share sequences
constexpr int TILES = H / 2 / TILE_K;      // of K in a block
constexpr int BARRIERS = 256;              // bytes
static_assert(H % 256 == 0 && H <= 2048, "H is a multiple of 256 up to 2048");

DEVICE void store_cell(void* cells, int kind, size_t at, float c) {
  if (kind == CELLS_FLOAT) {
    __stcs(static_cast<float*>(cells) + at, c);
  } else {
    uint16_t bits;
    if (kind == CELLS_BFLOAT16)
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(c));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(c));
    __stcs(static_cast<uint16_t*>(cells) + at, bits);
  }
}

// SUBS sub-batches of WIDTH sequences make a group's. Below 64 sequences a wgmma takes as long as with 64 (32 cycles
// measured at 32, 40, 48 and 64), so that narrower sub-batches are for small batches only.
template <int SUBS_, int WIDTH_>
struct ForwardPlan {
  static constexpr int SUBS = SUBS_, WIDTH = WIDTH_, COLUMNS = SUBS * WIDTH;
  static constexpr int TILES_PER_STAGE = WIDTH > 32 ? 2 : 4;
  static constexpr int STAGE = TILES_PER_STAGE * WIDTH * 128;
  static constexpr int WEIGHTS = TILES * WEIGHT_TILE;
  static constexpr int OCTETS = WIDTH / 16;                // of sequences, in each block's half of a sub-batch
  static constexpr int EXCHANGE = 2 * OCTETS * 128 * 16;   // bytes of the partial sums of one half of K
  static constexpr int STAGING = WIDTH / 2 * UNITS * 2;    // bytes of h on its way out
  static constexpr int FIXED = WEIGHTS + 2 * EXCHANGE + STAGING + BARRIERS;
  static constexpr int STAGES = (232448 - FIXED) / STAGE < 8 ? (232448 - FIXED) / STAGE : 8;
  static constexpr int SHARED = FIXED + STAGES * STAGE;
  static_assert(8 * (2 * STAGES + 5) <= BARRIERS, "a barrier has 8 bytes");
  // 2 x multiply + finish + fetch = 512 = 65,536 registers / 128 threads.
  static constexpr bool TIGHT = WIDTH > 32 && TILES > 12;
  static constexpr int MULTIPLY_REGISTERS = TIGHT ? 192 : 176, FETCH_REGISTERS = TIGHT ? 32 : 40;
  static constexpr int FINISH_REGISTERS = 512 - 2 * MULTIPLY_REGISTERS - FETCH_REGISTERS;
};

template <class Plan>
DEVICE void forward(const ForwardArguments& args) {
  using RingT = Ring<Plan::STAGES, Plan::STAGE>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const uint32_t ring_at = base + Plan::WEIGHTS, exchange_at = ring_at + Plan::STAGES * Plan::STAGE;
  const uint32_t staging_at = exchange_at + 2 * Plan::EXCHANGE, barriers = staging_at + Plan::STAGING;
  // full: both halves of the partial sums are there. empty[0]: this block's have been read, [1]: the peer's have.
  const uint32_t exchange_full = barriers + 16 * Plan::STAGES, exchange_empty = exchange_full + 8;
  // full: a sub-batch's h of this block is staged. empty: it has been published.
  const uint32_t staging_full = exchange_empty + 16, staging_empty = staging_full + 8;
  RingT ring(ring_at, barriers);

  const int thread = threadIdx.x, lane = thread % 32;
  const int warp = __shfl_sync(~0u, thread / 32, 0), warpgroup = warp / 4;  // uniform, and the compiler knows it
  const int half = blockIdx.x & 1;  // of K, and of a sub-batch's sequences which are finished here
  const int pair = blockIdx.x / 2 % PAIRS, group = blockIdx.x / 2 / PAIRS;
  const int rotation = pair % TILES;
  const int first_sequence = args.begin + group * Plan::COLUMNS;
  uint32_t* const flags = args.flags + group * Plan::SUBS * 2 * FLAG_STRIDE;
  const int T = args.T, B = args.B;
  uint32_t* const status = args.status;

  if (thread == 0) {
    ring.init();
    barrier_init(exchange_full, 8 * WARP_ARRIVALS + 1);  // eight warps of this block, and the announcement of the peer's bytes
    barrier_init(exchange_empty, 4 * WARP_ARRIVALS);
    barrier_init(exchange_empty + 8, 1);
    barrier_init(staging_full, 4 * WARP_ARRIVALS);
    barrier_init(staging_empty, 1);
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  // Row r of a warp's 16 in a warpgroup's 64 is gate 2 (r / 8) + (r / 4) % 2 of unit r % 4: what wgmma leaves a thread
  // are then two gates of one unit, and the thread 16 lanes on has the other two.
  auto weight_row = [&](int warpgroup, int row) {
    const int r = row % 16, unit = pair * UNITS + warpgroup * 16 + row / 16 * 4 + r % 4;
    return args.weight + (size_t)((r / 4 % 2 + r / 8 * 2) * H + unit) * H + half * (H / 2);
  };
  for (int i = thread; i < Plan::WEIGHTS / 16; i += 512) {
    const int chunk = i % 8, row = i / 8 % 64, of = i / 512 % 2, pair_of_tiles = i / 1024;
    const int slice = chunk / 2, tile = pair_of_tiles * 2 + slice / 2;
    if (tile < TILES) {
      const int k = (tile + rotation) % TILES * TILE_K + (slice % 2 * 2 + 1) * 16 + chunk % 2 * 8;
      *reinterpret_cast<uint4*>(shared + (pair_of_tiles * 2 + of) * WEIGHT_TILE + row * 128 + ((chunk ^ row % 8) << 4)) =
          *reinterpret_cast<const uint4*>(weight_row(of, row) + k);
    }
  }
  fence_shared();
  __syncthreads();
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");

  if (warpgroup < 2) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Plan::MULTIPLY_REGISTERS));
    const int t128 = thread % 128;
    uint32_t a[TILES][2][4];
    {
      const int row = 16 * (warp % 4) + lane / 4, column = lane % 4 * 2;
      const Element *upper = weight_row(warpgroup, row) + column, *lower = weight_row(warpgroup, row + 8) + column;
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int s = 0; s < 2; s++) {
          const int k = (tile + rotation) % TILES * TILE_K + s * 32;
          a[tile][s][0] = *reinterpret_cast<const uint32_t*>(upper + k);
          a[tile][s][1] = *reinterpret_cast<const uint32_t*>(lower + k);
          a[tile][s][2] = *reinterpret_cast<const uint32_t*>(upper + k + 8);
          a[tile][s][3] = *reinterpret_cast<const uint32_t*>(lower + k + 8);
        }
    }
    const uint32_t weights = descriptor(base + warpgroup * WEIGHT_TILE);
    // Sums of the sequences that this block finishes stay here, the others go to the peer. Half a warpgroup's of each:
    // with one warpgroup keeping and the other sending, the sending was waited for (0.25 us a step).
    const uint32_t own = exchange_at + (half * 2 + warpgroup) * Plan::OCTETS * 2048 + t128 * 16;
    const uint32_t remote = address_in(own, half ^ 1), remote_full = address_in(exchange_full, half ^ 1);
    uint32_t parity = 1;
    float acc[Plan::WIDTH / 2];
    auto keep = [&](auto of_half) {
      constexpr int FIRST = decltype(of_half)::value * Plan::OCTETS * 4;
#pragma unroll
      for (int j = 0; j < Plan::OCTETS; j++)
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(own + j * 2048), "f"(acc[FIRST + 4 * j]),
                     "f"(acc[FIRST + 4 * j + 1]), "f"(acc[FIRST + 4 * j + 2]), "f"(acc[FIRST + 4 * j + 3])
                     : "memory");
    };
    auto send = [&](auto of_half) {
      constexpr int FIRST = decltype(of_half)::value * Plan::OCTETS * 4;
#pragma unroll
      for (int j = 0; j < Plan::OCTETS; j++)
        asm volatile(
            "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                remote + j * 2048),
            "f"(acc[FIRST + 4 * j]), "f"(acc[FIRST + 4 * j + 1]), "f"(acc[FIRST + 4 * j + 2]), "f"(acc[FIRST + 4 * j + 3]),
            "r"(remote_full)
            : "memory");
    };
    for (int t = 0; t < T; t++)
      for (int sub = 0; sub < Plan::SUBS; sub++) {
        multiply<TILES, Plan::TILES_PER_STAGE, Plan::WIDTH>(acc, a, weights, ring, t128 == 0, status, t, sub);
        barrier_wait<true>(exchange_empty + 8, parity, status, EXCHANGE_EMPTY, t, sub);
        barrier_wait(exchange_empty, parity, status, EXCHANGE_EMPTY, t, sub);
        parity ^= 1;
        pin(acc);
        wgmma_wait<0>();
        pin(acc);
        release_last(ring, t128 == 0);
        if (half == 0) {
          send(Index<1>{});
          keep(Index<0>{});
        } else {
          send(Index<0>{});
          keep(Index<1>{});
        }
        barrier_arrive_warp(exchange_full, lane);
      }
  } else if (warpgroup == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Plan::FINISH_REGISTERS));
    // A thread finishes two sequences of OWN units: those of every second row of 16 of the product, 4 units each.
    constexpr int OWN = Plan::WIDTH / 16;
    const int octet = warp % 4 % Plan::OCTETS, row = warp % 4 / Plan::OCTETS * 2 * OWN + lane / 16;
    const int column = octet * 8 + lane % 4 * 2;  // of this block's half of a sub-batch
    const int first_column = half * (Plan::WIDTH / 2) + column;
    const int first_unit = row * 4 + lane / 4 % 4;  // of the pair's; the next is 8 on
    auto sums = [&](int i) {
      const int of_16 = row + 2 * i, part = (of_16 / 4 * Plan::OCTETS + octet) * 128 + of_16 % 4 * 32 + lane % 16;
      return reinterpret_cast<const float4*>(shared + (exchange_at - base)) + part;
    };
    const bool leader = thread % 128 == 0;

    const int unit = pair * UNITS + first_unit;
    float c[Plan::SUBS][OWN][2];
    unrolled<0, Plan::SUBS>([&](auto sub) {
      constexpr int S = decltype(sub)::value;
#pragma unroll
      for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int d = 0; d < 2; d++)
          c[S][i][d] =
              args.c0[(size_t)min(first_sequence + S * Plan::WIDTH + first_column + d, args.end - 1) * H + unit + 8 * i];
    });
    uint2 x[OWN][2];  // a step's inputs
    uint32_t kept = ~0u;
    auto fetch = [&](int t, int sub) {
      const int first = opaque(first_sequence) + sub * Plan::WIDTH + first_column;
#pragma unroll
      for (int d = 0; d < 2; d++) {
        const int at = t * B + min(first + d, args.end - 1);
        const uint2* const row = args.inputs + (size_t)(args.ids ? args.ids[at] : at) * H + unit;
#pragma unroll
        for (int i = 0; i < OWN; i++) x[i][d] = __ldg(row + 8 * i);
      }
      if (args.resets) {
        kept = 0;
#pragma unroll
        for (int d = 0; d < 2; d++) kept |= (args.resets[t * B + min(first + d, args.end - 1)] == 0) << d;
      }
    };
    if (leader) barrier_expect(exchange_full, Plan::EXCHANGE);
    fetch(0, 0);
    uint32_t parity = 0;
    for (int t = 0; t < T; t++)
      unrolled<0, Plan::SUBS>([&](auto sub) {
        constexpr int S = decltype(sub)::value;
        barrier_wait<true>(exchange_full, parity, status, EXCHANGE_FULL, t, S);
        if (leader) barrier_expect(exchange_full, Plan::EXCHANGE);
        uint32_t h[OWN];
        uint2 gates[OWN][2];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
          // Two columns of gates i and g, and 16 lanes on of f and o: from the lower half of K and from the upper.
          const float4* const from = sums(i);
          const float4 ig = from[0], fo = from[16];
          const float4 ig2 = from[Plan::EXCHANGE / 16], fo2 = from[Plan::EXCHANGE / 16 + 16];
          float h_t[2];
#pragma unroll
          for (int d = 0; d < 2; d++) {
            const bool keep = kept >> d & 1;
            const float z_i = keep ? (d ? ig.y + ig2.y : ig.x + ig2.x) : 0.0f;
            const float z_f = keep ? (d ? fo.y + fo2.y : fo.x + fo2.x) : 0.0f;
            const float z_g = keep ? (d ? ig.w + ig2.w : ig.z + ig2.z) : 0.0f;
            const float z_o = keep ? (d ? fo.w + fo2.w : fo.z + fo2.z) : 0.0f;
            const float c_prev = keep ? c[S][i][d] : 0.0f;
            const float g_i = sigmoid_fast(z_i + unpack_low(x[i][d].x)), g_f = sigmoid_fast(z_f + unpack_high(x[i][d].x));
            const float g_g = tanh_fast(z_g + unpack_low(x[i][d].y)), g_o = sigmoid_fast(z_o + unpack_high(x[i][d].y));
            c[S][i][d] = g_f * c_prev + g_i * g_g;
            h_t[d] = g_o * tanh_fast(c[S][i][d]);
            gates[i][d] = make_uint2(pack(g_i, g_f), pack(g_g, g_o));
          }
          h[i] = pack(h_t[0], h_t[1]);
        }
        // The sums have been read: their place is free.
        barrier_arrive_warp(exchange_empty, lane);
#pragma unroll
        for (int i = 0; i < OWN; i++)
#pragma unroll
          for (int d = 0; d < 2; d++) {
            // Rows of 64 bytes in the copy engine's swizzle: chunk of 16 bytes ^ row / 2 % 4.
            const int at = ((first_unit + 8 * i) * 2) ^ (lane % 4 << 4);
            *reinterpret_cast<uint16_t*>(shared + (staging_at - base) + (column + d) * 64 + at) = (uint16_t)(h[i] >> 16 * d);
          }
        fence_shared();
        barrier_arrive_warp(staging_full, lane);
        // Nobody waits for the rest.
        if (args.gates || args.cells_kind != CELLS_NONE) {
#pragma unroll
          for (int d = 0; d < 2; d++) {
            const int b = opaque(first_sequence) + S * Plan::WIDTH + first_column + d;
            const size_t at = (size_t)(t * B + b) * H + unit;
            if (b < args.end) {
#pragma unroll
              for (int i = 0; i < OWN; i++) {
                if (args.gates) __stcs(args.gates + at + 8 * i, gates[i][d]);
                if (args.cells_kind != CELLS_NONE) store_cell(args.cells, args.cells_kind, at + 8 * i, c[S][i][d]);
              }
            }
          }
        }
        // The next inputs: from here on this thread would only wait.
        if (S + 1 < Plan::SUBS || t + 1 < T) fetch(S + 1 < Plan::SUBS ? t : t + 1, (S + 1) % Plan::SUBS);
        barrier_wait(staging_empty, parity, status, STORED, t, S);
        parity ^= 1;
      });
    unrolled<0, Plan::SUBS>([&](auto sub) {
      constexpr int S = decltype(sub)::value;
#pragma unroll
      for (int d = 0; d < 2; d++) {
        const int b = opaque(first_sequence) + S * Plan::WIDTH + first_column + d;
#pragma unroll
        for (int i = 0; i < OWN; i++)
          if (b < args.end) args.c_n[(size_t)b * H + unit + 8 * i] = c[S][i][d];
      }
    });
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Plan::FETCH_REGISTERS));
    if (warp == 12 && lane == 0) {
      for (int t = 0; t < T; t++)
        for (int sub = 0; sub < Plan::SUBS; sub++) {
          if (t > 0) {
            flag_wait(flags + (sub * 2 + half) * FLAG_STRIDE, t * PAIRS, status, PUBLISHED, t, sub);
            fence_copy_engine();
          }
          load<TILES, Plan::TILES_PER_STAGE, Plan::WIDTH>(
              ring, args.map, half * (H / 2), first_sequence + sub * Plan::WIDTH, t, rotation, status, t, sub);
        }
    } else if (warp == 13 && lane == 0) {
      // Tells the peer that its sums have been read. A release to the cluster takes over 1,000 cycles, here nobody's.
      const uint32_t peer_empty = address_in(exchange_empty + 8, half ^ 1);
      for (int i = 0; i < T * Plan::SUBS; i++) {
        barrier_wait(exchange_empty, i & 1, status, EXCHANGE_EMPTY, i / Plan::SUBS, i % Plan::SUBS);
        barrier_arrive_in_cluster(peer_empty);
      }
    } else if (warp == 14 && lane == 0) {
      for (int t = 0; t < T; t++)
        for (int sub = 0; sub < Plan::SUBS; sub++) {
          barrier_wait(staging_full, (t * Plan::SUBS + sub) & 1, status, STORED, t, sub);
          copy_out(args.out, pair * UNITS, first_sequence + sub * Plan::WIDTH + half * (Plan::WIDTH / 2), t + 1, staging_at);
          flag_add(flags + (sub * 2 + (pair >= PAIRS / 2)) * FLAG_STRIDE);
          barrier_arrive(staging_empty);
        }
    }
  }
  __syncwarp();
  // The peer may still send here or count here. Warps park in an ordinary barrier first: a wait on the cluster's spins.
  sync_threads<1, 512>();
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

#define FORWARD(NAME, ...)                                                                                             \
  extern "C" __constant__ const int NAME##_shared = ForwardPlan<__VA_ARGS__>::SHARED;         \
  extern "C" __global__ void __launch_bounds__(512, 1) NAME(const __grid_constant__ ForwardArguments args) {           \
    forward<ForwardPlan<__VA_ARGS__>>(args);                                                                           \
  }

FORWARD(lstm_forward_2x64, 2, 64)
FORWARD(lstm_forward_2x32, 2, 32)
FORWARD(lstm_forward_2x16, 2, 16)
