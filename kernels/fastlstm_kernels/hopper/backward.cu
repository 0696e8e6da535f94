// The LSTM backward recurrence of all T steps in one launch, the recurrent weights on the chip throughout (sm_90a).
//
// Going from step t + 1 to step t takes d_gates_{t+1} W_hh, a sum over 4H gates, and the pointwise gradient of step t.
// A block multiplies 128 units by the gates of H / 8 units and leaves float32 partial sums in global memory; the 8 blocks
// that share 128 units then finish 16 of them each, adding the partials in a fixed order.
// So a step of one sub-batch of sequences passes through global memory twice, a chain of two or three products' length.
// The partial sums say themselves of which round they are (see tagged), so that no flag stands before them.
//
// Warps of a block (512 threads): 0-7 multiply, 8-11 finish and carry the gradient of c in float32 for all T, 12
// fetches d_gates, 13 publishes partial sums, 14 d_gates, 15 watches for other blocks' partial sums.
//
// Round n = 0 .. T - 1 finishes step T - 1 - n; from round 1 on, the product of step T - n comes before it. Partials
// alternate between two buffers. A block may write those of round n + 2 when the partials of round n + 1 of its units are
// complete, which it learns from a flag long before: for them, every block had to finish round n.
#include "resident.cuh"

#ifndef HIDDEN
#define HIDDEN 2048
#endif

struct BackwardArguments {
  TensorMap map;          // d_gates, a unit's four gates side by side; boxes of 64 of them, a sub-batch's width
  const Element* weight;  // (4H, H), gates i, f, g, o
  const uint2* gates;     // (T, B, H) x 4 activated gates
  const float* cells;     // (T, B, H)
  const float* c0;        // (B, H)
  const Element* dh;      // (T, B, H) or null
  const float* dc;        // (T, B, H) or null
  const float* dc_n;      // (B, H) or null
  const uint8_t* resets;  // (T, B) or null
  float* dc0;             // (B, H)
  float4* partials;       // zero; 2 x groups x sub-batches x (H / 128) x 8 x 128 units x width
  uint32_t* flags;        // zero; groups x sub-batches x (H / 128 of partial sums, then 8 of d_gates) x FLAG_STRIDE
  uint32_t* status;       // pinned host memory, see give_up
  int T, B;
  int begin, end;         // sequences of this launch
};

constexpr int H = HIDDEN;
constexpr int UNIT_GROUPS = H / 128, SLICES = 8;
constexpr int BLOCKS = UNIT_GROUPS * SLICES;  // in a group of blocks that share sequences
constexpr int SLICE_UNITS = H / SLICES, SLICE_K = 4 * SLICE_UNITS, TILES = SLICE_K / TILE_K;
constexpr int TILE_UNITS = 128 / SLICES;      // what one warp multiplies, and what a block finishes
constexpr int BARRIERS = 256;                 // bytes
static_assert(H % 256 == 0 && H <= 2048, "H is a multiple of 256 up to 2048");

template <int SUBS_, int WIDTH_>
struct BackwardPlan {
  static constexpr int SUBS = SUBS_, WIDTH = WIDTH_, COLUMNS = SUBS * WIDTH;
  static constexpr int TILES_PER_STAGE = WIDTH > 32 ? 2 : 4;
  static constexpr int STAGE = TILES_PER_STAGE * WIDTH * 128;
  static constexpr int WEIGHTS = TILES * WEIGHT_TILE;
  static constexpr int STAGING = WIDTH * 128;  // bytes of a sub-batch's d_gates, 16 units, on their way out
  static constexpr int CARRIED = SUBS * ((WIDTH / 8 + 3) / 4) * 128 * 16;  // the gradients of c that are carried back
  static constexpr int FIXED = WEIGHTS + SUBS * STAGING + CARRIED + BARRIERS;
  static constexpr int STAGES = (232448 - FIXED) / STAGE < 8 ? (232448 - FIXED) / STAGE : 8;
  static constexpr int SHARED = FIXED + STAGES * STAGE;
  static_assert(8 * (2 * STAGES + 3 * SUBS) <= BARRIERS, "a barrier has 8 bytes");
  static constexpr int PARTIAL = 128 * WIDTH / 4;  // float4s of a block's partial sums
  static constexpr int SHARES = WIDTH / 8;         // of 16 units x 8 sequences, dealt out to four warps
  static constexpr int OWN = (SHARES + 3) / 4, FINISHERS = SHARES < 4 ? SHARES : 4;  // warps
  static_assert(SHARES == OWN * FINISHERS, "every warp has the same number of shares");
  // 2 x multiply + finish + fetch = 512 = 65,536 registers / 128 threads.
  static constexpr int MULTIPLY_REGISTERS = 176, FETCH_REGISTERS = 40;
  static constexpr int FINISH_REGISTERS = 512 - 2 * MULTIPLY_REGISTERS - FETCH_REGISTERS;
};

// 16 gates x 64 units of W_hh at a time, transposed on their way to registers and shared memory.
constexpr int STAGED_ROW = 144;  // bytes: 64 units, and 16 to spread the rows over the banks
constexpr int STAGED_TILES = 2;

DEVICE void load_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// Of the partials of round n: each of the two buffers, at first zero, alternates.
DEVICE uint32_t tag_of(int n) { return (n - 1) / 2 % 2 ^ 1; }

template <class Plan>
DEVICE void backward(const BackwardArguments& args) {
  using RingT = Ring<Plan::STAGES, Plan::STAGE>;
  static_assert(Plan::STAGES * Plan::STAGE >= 2 * STAGED_TILES * 64 * STAGED_ROW, "the ring holds what is transposed");
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const uint32_t ring_at = base + Plan::WEIGHTS, staging_at = ring_at + Plan::STAGES * Plan::STAGE;
  const uint32_t carried_at = staging_at + Plan::SUBS * Plan::STAGING, barriers = carried_at + Plan::CARRIED;
  // For each sub-batch: this block's partial sums are written, its d_gates are staged; all blocks' partial sums of its
  // units are complete.
  const uint32_t stored = barriers + 16 * Plan::STAGES, summed = stored + 16 * Plan::SUBS;
  RingT ring(ring_at, barriers);

  const int thread = threadIdx.x, lane = thread % 32;
  const int warp = __shfl_sync(~0u, thread / 32, 0), warpgroup = warp / 4;  // uniform, and the compiler knows it
  const int group = blockIdx.x / BLOCKS, unit_group = blockIdx.x % BLOCKS % UNIT_GROUPS;
  const int slice = blockIdx.x % BLOCKS / UNIT_GROUPS;
  const int rotation = unit_group % TILES;
  const int first_sequence = args.begin + group * Plan::COLUMNS;
  uint32_t* const products = args.flags + group * Plan::SUBS * (UNIT_GROUPS + SLICES) * FLAG_STRIDE;
  uint32_t* const finished = products + Plan::SUBS * UNIT_GROUPS * FLAG_STRIDE;
  const int T = args.T, B = args.B;
  uint32_t* const status = args.status;
  // Partial sums of round n and a sub-batch: those of slice 0 of this block's units.
  float4* const partials_at =
      args.partials + (size_t)(group * Plan::SUBS * UNIT_GROUPS + unit_group) * SLICES * Plan::PARTIAL;
  auto partials = [&](int n, int sub) {
    const int groups = gridDim.x / BLOCKS;
    return partials_at + ((opaque(n) & 1) * groups * Plan::SUBS + sub) * (UNIT_GROUPS * SLICES * Plan::PARTIAL);
  };

  if (thread == 0) {
    ring.init();
    for (int i = 0; i < Plan::SUBS; i++) {
      barrier_init(stored + 8 * i, 8 * WARP_ARRIVALS);
      barrier_init(stored + 8 * (Plan::SUBS + i), Plan::FINISHERS * WARP_ARRIVALS);
      barrier_init(summed + 8 * i, 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;");
  }

  if (warpgroup < 2) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Plan::MULTIPLY_REGISTERS));
    const int t128 = thread % 128;
    uint32_t a[TILES][2][4];
    {
      const uint32_t staged = ring_at + warpgroup * (STAGED_TILES * 64 * STAGED_ROW);
      const Element* const from = args.weight + unit_group * 128 + warpgroup * 64 + t128 % 8 * 8;
      // ldmatrix reads 8 rows (gates) of 8 units from each of its four groups of lanes.
      const uint32_t read = staged + (lane % 8 + lane / 16 * 8) * STAGED_ROW + (16 * (warp % 4) + lane / 8 % 2 * 8) * 2;
      const int row = 16 * (warp % 4) + lane / 4;
      const uint32_t write = base + warpgroup * WEIGHT_TILE + row * 128 + lane % 4 * 4;
#pragma unroll
      for (int round = 0; round < TILES / STAGED_TILES; round++) {
        uint4 eight[STAGED_TILES * 4];
#pragma unroll
        for (int i = 0; i < STAGED_TILES * 4; i++) {
          const int staged_row = i * 16 + t128 / 8;  // of STAGED_TILES * 64 gates
          const int tile = (round * STAGED_TILES + i / 4 + rotation) % TILES;
          const int k = slice * SLICE_K + tile * TILE_K + staged_row % 64;
          eight[i] = *reinterpret_cast<const uint4*>(from + (size_t)(k % 4 * H + k / 4) * H);
        }
        if (warpgroup == 0) sync_threads<3, 128>();  // the rows before these have been read
        else sync_threads<4, 128>();
#pragma unroll
        for (int i = 0; i < STAGED_TILES * 4; i++)
          asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(staged + (i * 16 + t128 / 8) * STAGED_ROW +
                                                                        t128 % 8 * 16),
                       "r"(eight[i].x), "r"(eight[i].y), "r"(eight[i].z), "r"(eight[i].w)
                       : "memory");
        if (warpgroup == 0) sync_threads<3, 128>();
        else sync_threads<4, 128>();
#pragma unroll
        for (int z = 0; z < STAGED_TILES; z++)
#pragma unroll
          for (int s = 0; s < 4; s++) {
            const int tile = round * STAGED_TILES + z;
            const uint32_t rows = read + (z * 64 + s * 16) * STAGED_ROW;
            if (s % 2 == 0) {
              load_transposed(a[tile][s / 2], rows);
            } else {
              uint32_t w[4];
              load_transposed(w, rows);
              const uint32_t to = write + tile / 2 * 2 * WEIGHT_TILE;
              const int chunk = shared_slice(tile, s) * 2;
#pragma unroll
              for (int m = 0; m < 4; m++)
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + m % 2 * 8 * 128 + (((chunk + m / 2) ^ row % 8) << 4)),
                             "r"(w[m])
                             : "memory");
            }
          }
      }
      fence_shared();
    }
    sync_threads<1, 512>();
    const uint32_t weights = descriptor(base + warpgroup * WEIGHT_TILE);
    float acc[Plan::WIDTH / 2];
    for (int n = 1; n < T; n++)
      for (int sub = 0; sub < Plan::SUBS; sub++) {
        multiply<TILES, Plan::TILES_PER_STAGE, Plan::WIDTH>(acc, a, weights, ring, t128 == 0, status, n, sub);
        pin(acc);
        wgmma_wait<0>();
        pin(acc);
        release_last(ring, t128 == 0);
        float4* const to = partials(n, sub) + slice * Plan::PARTIAL + warp * (Plan::WIDTH / 8) * 32 + lane;
        const uint32_t tag = tag_of(n);
        if (n > 1) barrier_wait(summed + 8 * sub, n & 1, status, PARTIALS, n, sub);
#pragma unroll
        for (int j = 0; j < Plan::WIDTH / 8; j++)
          store_relaxed(to + j * 32, make_float4(tagged(acc[4 * j], tag), tagged(acc[4 * j + 1], tag),
                                                 tagged(acc[4 * j + 2], tag), tagged(acc[4 * j + 3], tag)));
        barrier_arrive_warp(stored + 8 * sub, lane);
      }
  } else if (warpgroup == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Plan::FINISH_REGISTERS));
    sync_threads<1, 512>();
    if (warp % 4 >= Plan::FINISHERS) return;
    // A share is 16 units of 8 sequences. A thread has units `unit`, unit + 8 of sequences s, s + 1, as wgmma leaves them.
    const int quarter = warp % 4, s = lane % 4 * 2;
    const int unit = unit_group * 128 + slice * TILE_UNITS + lane / 4;
    // Staged rows are 128 bytes, a sequence's 16 units, in the copy engine's swizzle: chunk of 16 bytes ^ row % 8.
    uint8_t* const staging = shared + (staging_at - base) + (quarter * 8 + s) * 128 + lane / 4 % 2 * 8;
    const int swizzled = (lane / 8 ^ s) << 4;
    auto sequence = [&](int sub, int i, int m) {
      return opaque(first_sequence) + sub * Plan::WIDTH + (quarter + 4 * i) * 8 + s + m % 2;
    };
    auto clamped = [&](int sub, int i, int m) { return min(sequence(sub, i, m), args.end - 1); };
    // The gradient of c_t without what comes through h_t, carried from step to step. In shared memory, a thread's own: in
    // registers they spilled, and what is spilled comes back from L2, since the L1 cache has no room beside 227 KB.
    float4* const carried = reinterpret_cast<float4*>(shared + (carried_at - base)) + thread % 128;
    for (int sub = 0; sub < Plan::SUBS; sub++)
      for (int i = 0; i < Plan::OWN; i++) {
        auto first = [&](int m) { return args.dc_n ? args.dc_n[(size_t)clamped(sub, i, m) * H + unit + m / 2 * 8] : 0.0f; };
        carried[(sub * Plan::OWN + i) * 128] = make_float4(first(0), first(1), first(2), first(3));
      }
    // What does not depend on the product is fetched a share ahead, dh in the form in which it comes: what is computed
    // from a load is waited for.
    uint2 gates[4];
    float c[4], c_prev[4];
    Element dh[4];
    uint32_t cut = 0, cut_next = 0;  // where a reset stands before step t, and before step t + 1
    auto fetch = [&](int t, int sub, int i) {
#pragma unroll
      for (int m = 0; m < 4; m++) {
        const int b = clamped(sub, i, m);
        const size_t at = (size_t)(t * B + b) * H + unit + m / 2 * 8;
        gates[m] = __ldcs(args.gates + at);
        c[m] = args.cells[at];
        c_prev[m] = t > 0 ? args.cells[at - (size_t)B * H] : args.c0[(size_t)b * H + unit + m / 2 * 8];
        dh[m] = args.dh ? args.dh[at] : Element{0};
      }
      if (args.resets) {
        cut = cut_next = 0;
#pragma unroll
        for (int m = 0; m < 4; m++) {
          const int b = clamped(sub, i, m);
          cut |= args.resets[t * B + b] << m;
          if (t + 1 < T) cut_next |= args.resets[(t + 1) * B + b] << m;
        }
      }
    };
    fetch(T - 1, 0, 0);
    for (int n = 0; n < T; n++)
      unrolled<0, Plan::SUBS * Plan::OWN>([&](auto item) {
        constexpr int S = decltype(item)::value / Plan::OWN, I = decltype(item)::value % Plan::OWN;
        constexpr int NEXT = (decltype(item)::value + 1) % (Plan::SUBS * Plan::OWN);
        const int t = T - 1 - n;
        {
          float back[4] = {0.0f, 0.0f, 0.0f, 0.0f}, dc[4];
          if (n > 0) {
            const float4* const part = partials(n, S) + opaque((slice * Plan::SHARES + quarter) * 32 + lane) + 4 * I * 32;
            const uint32_t tag = tag_of(n);
            float4 sums[SLICES];
            for (uint32_t tries = 0;; tries++) {
              bool complete = true;
#pragma unroll
              for (int r = 0; r < SLICES; r++) sums[r] = load_relaxed(part + r * Plan::PARTIAL);
#pragma unroll
              for (int r = 0; r < SLICES; r++) complete &= has_tag(sums[r], tag);
              if (complete) break;
              // While there is something to wait for, a lane looks at one slice alone.
              while (!has_tag(load_relaxed(part + lane % SLICES * Plan::PARTIAL), tag))
                if (++tries >= MOST_TRIES) give_up(status, PARTIALS, n, S);
            }
#pragma unroll
            for (int r = 0; r < SLICES; r++) {
              back[0] += sums[r].x;
              back[1] += sums[r].y;
              back[2] += sums[r].z;
              back[3] += sums[r].w;
            }
          }
          float4& dc_carried = carried[(S * Plan::OWN + I) * 128];
          dc[0] = dc_carried.x, dc[1] = dc_carried.y, dc[2] = dc_carried.z, dc[3] = dc_carried.w;
#pragma unroll
          for (int m = 0; m < 4; m++) {
            const bool next = !(cut_next >> m & 1), before = !(cut >> m & 1);
            const float g_i = unpack_low(gates[m].x), g_f = unpack_high(gates[m].x);
            const float g_g = unpack_low(gates[m].y), g_o = unpack_high(gates[m].y);
            const float tanh_c = tanh_fast(c[m]);
            const float dh_t = to_float(dh[m]) + (next ? back[m] : 0.0f);
            float dc_t = (next ? dc[m] : 0.0f) + dh_t * g_o * (1.0f - tanh_c * tanh_c);
            if (args.dc) dc_t += __ldcs(args.dc + (size_t)(t * B + clamped(S, I, m)) * H + unit + m / 2 * 8);
            dc[m] = dc_t * g_f;
            const uint2 d_gates =
                make_uint2(pack(dc_t * g_g * g_i * (1.0f - g_i), before ? dc_t * c_prev[m] * g_f * (1.0f - g_f) : 0.0f),
                           pack(dc_t * g_i * (1.0f - g_g * g_g), dh_t * tanh_c * g_o * (1.0f - g_o)));
            *reinterpret_cast<uint2*>(staging + S * Plan::STAGING + (32 * I + m % 2) * 128 +
                                      (swizzled ^ (m % 2 << 4 | m / 2 << 6))) = d_gates;
            if (t == 0 && sequence(S, I, m) < args.end)
              args.dc0[(size_t)sequence(S, I, m) * H + unit + m / 2 * 8] = before ? dc[m] : 0.0f;
          }
          dc_carried = make_float4(dc[0], dc[1], dc[2], dc[3]);
        }
        if (I + 1 == Plan::OWN) {
          fence_shared();
          barrier_arrive_warp(stored + 8 * (Plan::SUBS + S), lane);
        }
        if (NEXT > 0 || t > 0) fetch(NEXT > 0 ? t : t - 1, NEXT / Plan::OWN, NEXT % Plan::OWN);
      });
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Plan::FETCH_REGISTERS));
    sync_threads<1, 512>();
    if (warp == 12 && lane == 0) {
      for (int n = 1; n < T; n++)
        for (int sub = 0; sub < Plan::SUBS; sub++) {
          flag_wait(finished + (sub * SLICES + slice) * FLAG_STRIDE, n * (SLICE_UNITS / TILE_UNITS), status, PUBLISHED, n,
                    sub);
          fence_copy_engine();
          load<TILES, Plan::TILES_PER_STAGE, Plan::WIDTH>(
              ring, args.map, slice * SLICE_K, first_sequence + sub * Plan::WIDTH, T - n, rotation, status, n, sub);
        }
    } else if (warp == 13 && lane == 0) {
      for (int n = 1; n < T; n++)
        for (int sub = 0; sub < Plan::SUBS; sub++) {
          barrier_wait(stored + 8 * sub, (n - 1) & 1, status, STORED, n, sub);
          flag_add(products + (sub * UNIT_GROUPS + unit_group) * FLAG_STRIDE);
        }
    } else if (warp == 14 && lane == 0) {
      // The slice of the product in which the units that this block finishes are summed over.
      const int of = (unit_group * 128 + slice * TILE_UNITS) / SLICE_UNITS;
      for (int n = 0; n < T; n++)
        for (int sub = 0; sub < Plan::SUBS; sub++) {
          barrier_wait(stored + 8 * (Plan::SUBS + sub), n & 1, status, STORED, n, sub);
          copy_out(args.map, (unit_group * 128 + slice * TILE_UNITS) * 4, first_sequence + sub * Plan::WIDTH, T - 1 - n,
                   staging_at + sub * Plan::STAGING);
          flag_add(finished + (sub * SLICES + of) * FLAG_STRIDE);
        }
    } else if (warp == 15 && lane < Plan::SUBS) {
      // None is missed: this block's own partial sums are among those counted, and wait for the round before.
      flag_watch(products + (lane * UNIT_GROUPS + unit_group) * FLAG_STRIDE, SLICES, T - 1, summed + 8 * lane, status,
                 PARTIALS, lane);
    }
  }
}

#define BACKWARD(NAME, ...)                                                                                            \
  extern "C" __constant__ const int NAME##_shared = BackwardPlan<__VA_ARGS__>::SHARED;         \
  extern "C" __global__ void __launch_bounds__(512, 1) NAME(const __grid_constant__ BackwardArguments args) {          \
    backward<BackwardPlan<__VA_ARGS__>>(args);                                                                         \
  }

BACKWARD(lstm_backward_4x32, 4, 32)
BACKWARD(lstm_backward_4x16, 4, 16)
BACKWARD(lstm_backward_2x16, 2, 16)
