// What both recurrences use of an H100: barriers in shared memory, tensor-map copies, wgmma, flags in global memory.
//
// No header of the CUDA toolkit is included, so that NVRTC needs none either. ELEMENT_FP16 chooses float16 over bfloat16.
#pragma once

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

#ifndef ELEMENT_FP16
#define ELEMENT_FP16 0
#endif
#if ELEMENT_FP16
#define ELEMENT "f16"
#else
#define ELEMENT "bf16"
#endif

#define DEVICE __device__ __forceinline__

// One number of the weights' dtype; arithmetic is in float32 only.
struct Element {
  uint16_t bits;
};

struct alignas(64) TensorMap {
  uint64_t words[16];
};

// Hides a value's origin from the compiler, so that what is computed from it is not kept in registers across a loop.
DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A compile-time index, to walk over sub-batches of different widths.
template <int N>
struct Index {
  static constexpr int value = N;
};
template <int I, int END, class F>
DEVICE void unrolled(const F& body) {
  if constexpr (I < END) {
    body(Index<I>{});
    unrolled<I + 1, END>(body);
  }
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// Relative error at most 2^-11 (PTX ISA, tanh.approx.f32): below a rounding of bfloat16, about one of float16.
DEVICE float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float sigmoid_fast(float x) { return fmaf(tanh_fast(0.5f * x), 0.5f, 0.5f); }

DEVICE uint32_t pack(float low, float high) {
  uint32_t packed;
  asm("cvt.rn." ELEMENT "x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
DEVICE float unpack_low(uint32_t packed) {
#if ELEMENT_FP16
  float x;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(x) : "r"(packed));
  return x;
#else
  return __uint_as_float(packed << 16);
#endif
}
DEVICE float unpack_high(uint32_t packed) {
#if ELEMENT_FP16
  float x;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(x) : "r"(packed));
  return x;
#else
  return __uint_as_float(packed & 0xffff0000u);
#endif
}
DEVICE float to_float(Element x) { return unpack_low(x.bits); }

// ---- giving up on a wait --------------------------------------------------------------------------------------------

// Who waited for what when a wait was given up; status[0] is one of these, then block, step and sub-batch.
enum Waited : uint32_t { STAGE_FULL = 1, STAGE_EMPTY, EXCHANGE_FULL, EXCHANGE_EMPTY, PUBLISHED, PARTIALS, STORED };

DEVICE uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

// Longer than any wait of a run that goes on: other processes' time slices do not count while the kernel is off the GPU.
constexpr uint64_t PATIENCE = 20'000'000'000ull;

struct Patience {
  uint64_t end = 0;
  DEVICE bool lost() {
    const uint64_t now = nanoseconds();
    if (end == 0) end = now + PATIENCE;
    return now > end;
  }
};

// `status` lies in pinned host memory, so that it can be read after the trap has ended the context.
DEVICE void give_up(volatile uint32_t* status, uint32_t waited, int step, int sub) {
  status[1] = blockIdx.x;
  status[2] = step;
  status[3] = sub;
  __threadfence_system();
  status[0] = waited;
  __threadfence_system();
  asm volatile("trap;");
  __builtin_unreachable();
}

// ---- barriers in shared memory --------------------------------------------------------------------------------------

DEVICE uint32_t shared_address(const void* pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

DEVICE uint32_t address_in(uint32_t address, uint32_t cta) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(cta));
  return remote;
}

DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// A warp's arrival, after what all its lanes have read and written: one lane's, ordered by __syncwarp. compute-sanitizer's
// racecheck does not follow that; compiled with EVERY_LANE_ARRIVES, which is slower, each lane speaks for itself.
#ifdef EVERY_LANE_ARRIVES
constexpr int WARP_ARRIVALS = 32;
DEVICE void barrier_arrive_warp(uint32_t barrier, int) { barrier_arrive(barrier); }
#else
constexpr int WARP_ARRIVALS = 1;
DEVICE void barrier_arrive_warp(uint32_t barrier, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}
#endif
DEVICE void barrier_arrive_in_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// The suspend-time hint keeps waiting warps from taking issue slots: without it a step was 2 to 3 us longer.
template <bool CLUSTER>
DEVICE bool barrier_passed(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
  if constexpr (CLUSTER) {
    asm volatile(
        "{.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, 10000000;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
  } else {
    asm volatile(
        "{.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2, 10000000;\nselp.u32 %0, 1, 0, p;}"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
  return passed;
}
template <bool CLUSTER = false>
DEVICE void barrier_wait(uint32_t barrier, uint32_t parity, uint32_t* status, uint32_t waited, int step, int sub) {
  if (barrier_passed<CLUSTER>(barrier, parity)) return;
  Patience patience;
  while (!barrier_passed<CLUSTER>(barrier, parity))
    if (patience.lost()) give_up(status, waited, step, sub);
}

template <int ID, int THREADS>
DEVICE void sync_threads() {
  asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

// ---- flags in global memory -----------------------------------------------------------------------------------------

constexpr int FLAG_STRIDE = 32;  // a cache line each

// Call from one thread after a barrier of all that wrote: its release covers what it has seen written (PTX causality).
DEVICE void flag_add(uint32_t* flag) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(flag) : "memory"); }

DEVICE uint32_t flag_read(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Blocks until the flag has risen to `target`; afterwards what was published with it can be read.
DEVICE void flag_wait(const uint32_t* flag, uint32_t target, uint32_t* status, uint32_t waited, int step, int sub) {
  Patience patience;
  for (uint32_t polls = 1; flag_read(flag) < target; polls++)
    if (polls % 1024 == 0 && patience.lost()) give_up(status, waited, step, sub);
}

// One lane's part of a warp that watches flags: `rounds` times, when the flag has risen by `step` more, an arrival at
// `barrier`. Each lane watches its own flag, so that none waits for another's. A read takes over 1,000 cycles also when
// the flag stands already, which those who wait at the barrier do not pay if the watching is ahead of them.
DEVICE void flag_watch(const uint32_t* flag, uint32_t step, int rounds, uint32_t barrier, uint32_t* status,
                       uint32_t waited, int sub) {
  Patience patience;
  uint32_t target = step;
  for (uint32_t polls = 1; rounds > 0; polls++) {
    if (flag_read(flag) >= target) {
      barrier_arrive(barrier);
      target += step;
      rounds--;
      polls = 0;
      patience.end = 0;
    } else if (polls % 1024 == 0 && patience.lost()) {
      give_up(status, waited, target / step, sub);
    }
  }
}

// float32 numbers that say themselves which round they belong to, in their last bit: no flag, and no fence before it, which
// waits for all stores of the multiprocessor (2,000 cycles measured). Every word is judged by itself, so that no order
// among them is needed; the bit is a rounding of 2^-24. An infinity may become a NaN.
DEVICE float tagged(float x, uint32_t tag) { return __uint_as_float((__float_as_uint(x) & ~1u) | tag); }
DEVICE bool has_tag(float4 x, uint32_t tag) {
  const uint32_t all = __float_as_uint(x.x) & __float_as_uint(x.y) & __float_as_uint(x.z) & __float_as_uint(x.w);
  const uint32_t any = __float_as_uint(x.x) | __float_as_uint(x.y) | __float_as_uint(x.z) | __float_as_uint(x.w);
  return ((tag ? all : ~any) & 1) != 0;
}
DEVICE void store_relaxed(float4* to, float4 x) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
}
DEVICE float4 load_relaxed(const float4* from) {
  float4 x;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(from)
               : "memory");
  return x;
}
constexpr uint32_t MOST_TRIES = 1u << 24;  // of a read that takes half a microsecond

// Between ordinary accesses to global memory and those of the copy engine, on both sides of a flag.
DEVICE void fence_copy_engine() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- the copy engine ------------------------------------------------------------------------------------------------

// Boxes of a tensor map over (time, sequence, column): rows past the last sequence are read as zero and not written.
DEVICE void copy_in(uint32_t to, const TensorMap& map, int column, int sequence, int t, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(sequence), "r"(t), "r"(barrier)
      : "memory");
}
// Returns when the box is in global memory. What was written to shared memory needs fence_shared by its writers first.
DEVICE void copy_out(const TensorMap& map, int column, int sequence, int t, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map),
               "r"(column), "r"(sequence), "r"(t), "r"(from)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
}
// Between ordinary accesses to shared memory and those of the copy engine and the tensor cores.
DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- tensor cores: D[64 x N] += A[64 x 16] B[16 x N], A from registers or shared memory, B from shared memory ------

// D is the first N / 2 numbers of an array that may be longer: one array for products of several widths.

// K-major, 128-byte swizzle: 8 rows of 128 bytes are one atom, 1,024 bytes to the next.
// The upper half of a descriptor is the same for all; passing the lower half alone keeps 64-bit sums out of registers.
#define DESCRIPTOR_HIGH "0x40000040"
DEVICE uint32_t descriptor(uint32_t address) { return (1u << 16) | (address >> 4); }

template <int N>
struct Wgmma;

#define ACC_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACC_8(d, i) ACC_4(d, i), ACC_4(d, i + 4)
#define WGMMA(N, OPERANDS, ACCUMULATORS, I0, I1, I2, I3, I4, I5)                                                       \
  template <>                                                                                                          \
  struct Wgmma<N> {                                                                                                    \
    template <int M>                                                                                                   \
    static DEVICE void from_registers(float (&d)[M], const uint32_t (&a)[4], uint32_t b, int accumulate) {         \
      asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %" #I5 ", 0;\n"                                    \
                   "mov.b64 b, {%" #I4 ", " DESCRIPTOR_HIGH "};\n"                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ELEMENT "." ELEMENT " {" OPERANDS "}, {%" #I0     \
                   ", %" #I1 ", %" #I2 ", %" #I3 "}, b, p, 1, 1, 0;\n}\n"                                              \
                   : ACCUMULATORS                                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(accumulate));                             \
    }                                                                                                                  \
    template <int M>                                                                                                   \
    static DEVICE void from_shared(float (&d)[M], uint32_t a, uint32_t b, int accumulate) {                        \
      asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %" #I2 ", 0;\n"                                 \
                   "mov.b64 a, {%" #I0 ", " DESCRIPTOR_HIGH "};\nmov.b64 b, {%" #I1 ", " DESCRIPTOR_HIGH "};\n"        \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ELEMENT "." ELEMENT " {" OPERANDS                 \
                   "}, a, b, p, 1, 1, 0, 0;\n}\n"                                                                      \
                   : ACCUMULATORS                                                                                      \
                   : "r"(a), "r"(b), "r"(accumulate));                                                                 \
    }                                                                                                                  \
  }

#define OPERANDS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define OPERANDS_16 OPERANDS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OPERANDS_32 \
  OPERANDS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ACCUMULATORS_8 ACC_8(d, 0)
#define ACCUMULATORS_16 ACCUMULATORS_8, ACC_8(d, 8)
#define ACCUMULATORS_32 ACCUMULATORS_16, ACC_8(d, 16), ACC_8(d, 24)

WGMMA(16, OPERANDS_8, ACCUMULATORS_8, 8, 9, 10, 11, 12, 13);
WGMMA(32, OPERANDS_16, ACCUMULATORS_16, 16, 17, 18, 19, 20, 21);
WGMMA(64, OPERANDS_32, ACCUMULATORS_32, 32, 33, 34, 35, 36, 37);

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving reads of the accumulators before the wait.
template <int N>
DEVICE void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
