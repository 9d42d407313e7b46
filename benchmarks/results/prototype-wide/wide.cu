// A prototype, not part of the package: many training steps of inputs-128-classes in one launch, as portable.cu (a prototype with
// 16 hidden units a block), with 8 units a block, so that 128 units have 16 multiprocessors and half the products on each.
// results.json says how fast it is, and what its predecessors were.
//
// Differences from portable.cu:
// - In the backward product a tile's 16 rows are the 8 units twice: two of the three bf16 parts of the errors at once.
// - Parts of the weights are made once a step, in registers. Products have no branch inside (a warp without a last tile
//   multiplies zeros), so that loads of the next tile overlap.
// - A thread has one unit of one sample after the reduction, and sums its part of the logits with the 7 others by shuffles:
//   they leave chunk by chunk, without another pass over shared memory.
// - All polls of a thread are issued together: one after another, each costs a round trip of some 700 clocks.
// - The small gradients are summed over a step before lanes exchange them.
// - With -DBULK (compute capability 9.0) rows come by cp.async.bulk, four lanes a warp, in place of 12 cp.async of each lane.
//
// Launch: BLOCKS blocks a network, 256 threads, cooperative; `exchange` has (BLOCKS BLOCKS SPB + 32 CHUNKS) 12 pairs of floats a
// network, cleared once. first_step must differ from the numbers that earlier launches left there: count up.
// -D: INPUTS (multiple of 16) HIDDEN (<= 8 BLOCKS) CLASSES (<= 10) BATCH BLOCKS SLOTS (as many as fit, 4 at most) PARTS (3, or 2)
// SHARED_BYTES (at least sizeof(Shared))
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
#define UNITS 8
#define K16 (INPUTS / 16)
#define WARPS 8
#define THREADS (WARPS * 32)
#define TILES ((K16 + WARPS - 1) / WARPS)
#define CHUNKS ((BATCH + 31) / 32)
#define XS (INPUTS * 2 + 16)
#define SPB ((BATCH + BLOCKS - 1) / BLOCKS)
#define ROUNDS ((SPB * 16 + THREADS - 1) / THREADS)
#define LOOKS ((BATCH * 6 + THREADS - 1) / THREADS)
#define LOADS (CHUNKS > SLOTS ? 2 * CHUNKS - SLOTS : CHUNKS)
#define A1S 12
#define REDS 8
#define DTS 40

struct Shared {
    alignas(128) unsigned char x[SLOTS][32][XS];
    union {
        alignas(16) float red[2][WARPS][32][REDS];
        struct {
            float unused[WARPS][32][REDS];
            alignas(16) float d2[CHUNKS * 32][12];  // is read before the barrier after which red[1] is written again
        };
    };
    alignas(16) float a1[CHUNKS * 32][A1S];
    alignas(16) u16 dt[2][PARTS][UNITS][DTS];
    alignas(16) float w2[UNITS][12], b1[UNITS], b2[12];
    alignas(8) unsigned long long full[SLOTS];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "too little shared memory");
static_assert(INPUTS % 16 == 0 && HIDDEN <= BLOCKS * UNITS && CLASSES <= 10 && PARTS <= 3 && SLOTS >= 1, "not made for these sizes");

#ifdef GPUMLP_HOST  // on a CPU, to be checked: host/README.md
#include "host/cuda_host.h"
__device__ u32 addr(const void* p) { return cuda_host::shared_address(p); }
__device__ void mma(float* d, const u32* a, u32 b0, u32 b1) { cuda_host::mma_m16n8k16_bf16(d, a, b0, b1); }
__device__ void ldm(u32* r, u32 a) { cuda_host::ldmatrix(r, a, 4, false); }
__device__ void ldmt(u32* r, u32 a) { cuda_host::ldmatrix(r, a, 4, true); }
__device__ void copy16(u32 to, const void* from) { cuda_host::cp_async(to, from, 16); }
__device__ void copies_arrive(void* bar) { cuda_host::cp_async_mbarrier_arrive_noinc(addr(bar)); }
__device__ void bulk(u32 to, const void* from, int bytes, void* bar) { cuda_host::cp_async_bulk(to, from, bytes, addr(bar)); }
__device__ void expect(void* bar, u32 bytes) { cuda_host::mbarrier_arrive_expect_tx(addr(bar), bytes); }
__device__ void fence_async() {}
__device__ void init(void* bar, int count) { cuda_host::mbarrier_init(addr(bar), count); }
__device__ void wait(void* bar, u32 parity)
{
    while (!cuda_host::mbarrier_test_wait_parity(addr(bar), parity)) {}
}
__device__ void tell(float2* place, float value, u32 step)
{
    float2 v = {value, __uint_as_float(step)};
    cuda_host::store(place, &v, 8, 1);
}
__device__ void tell(float2* place, float a, float b, u32 step)
{
    float2 v[2] = {{a, __uint_as_float(step)}, {b, __uint_as_float(step)}};
    cuda_host::store(place, v, 8, 2);
}
__device__ float2 look(const float2* place)
{
    float2 r;
    cuda_host::load(place, &r, 8, 1);
    return r;
}
__device__ float4 look2(const float2* place)
{
    float4 r;
    cuda_host::load(place, &r, 8, 2);
    return r;
}
#define DYNAMIC_SHARED(type, name) type* name = (type*)cuda_host::dynamic_shared()
#else
__device__ u32 addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ void mma(float* d, const u32* a, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ void ldm(u32* r, u32 a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ void ldmt(u32* r, u32 a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
// A number and its step are one 64-bit scalar: only of a scalar does the memory model promise that it is seen whole. Of
// vectors it says that their elements are accessed one by one, in any order.
__device__ void tell(float2* place, float value, u32 step)
{
    asm volatile("{\n.reg .b64 p;\nmov.b64 p, {%1, %2};\nst.relaxed.gpu.global.b64 [%0], p;\n}" ::"l"(place), "f"(value), "r"(step) : "memory");
}
__device__ void tell(float2* place, float a, float b, u32 step)
{
    asm volatile("{\n.reg .b64 p, q;\nmov.b64 p, {%1, %3};\nmov.b64 q, {%2, %3};\nst.relaxed.gpu.global.v2.b64 [%0], {p, q};\n}" ::"l"(place), "f"(a), "f"(b), "r"(step) : "memory");
}
__device__ float2 look(const float2* place)
{
    float2 r;
    asm volatile("{\n.reg .b64 p;\nld.relaxed.gpu.global.b64 p, [%2];\nmov.b64 {%0, %1}, p;\n}" : "=f"(r.x), "=f"(r.y) : "l"(place) : "memory");
    return r;
}
__device__ float4 look2(const float2* place)
{
    float4 r;
    asm volatile("{\n.reg .b64 p, q;\nld.relaxed.gpu.global.v2.b64 {p, q}, [%4];\nmov.b64 {%0, %1}, p;\nmov.b64 {%2, %3}, q;\n}" : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "l"(place) : "memory");
    return r;
}
__device__ void init(void* bar, int count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(addr(bar)), "r"(count) : "memory"); }
__device__ void wait(void* bar, u32 parity)
{
    u32 done;
    do asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(addr(bar)), "r"(parity) : "memory");
    while (!done);
}
__device__ void copy16(u32 to, const void* from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory"); }
#ifdef BULK
__device__ void bulk(u32 to, const void* from, int bytes, void* bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(addr(bar)) : "memory");
}
__device__ void expect(void* bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(addr(bar)), "r"(bytes) : "memory"); }
__device__ void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
#endif
__device__ void copies_arrive(void* bar) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(addr(bar)) : "memory"); }
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
__device__ void sync() { __syncthreads(); }
// The leading bf16 of two values, cut off and packed; what is left of the values. Three such parts are the whole value.
__device__ u32 take(float& lo, float& hi)
{
    u32 l = __float_as_uint(lo), h = __float_as_uint(hi);
    lo -= __uint_as_float(l & 0xffff0000u);
    hi -= __uint_as_float(h & 0xffff0000u);
    return __byte_perm(l, h, 0x7632);
}
// Keep one half of the values, exchanged with the lane that differs in bit COUNT of its number and keeps the other.
template <int COUNT> __device__ void halve(float* values, int lane)
{
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        float low = values[k], high = values[k + COUNT];
        values[k] = (lane & COUNT ? high : low) + __shfl_xor_sync(~0u, lane & COUNT ? low : high, COUNT);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    train(const u16* __restrict__ source, const i64* __restrict__ orders, const i64* __restrict__ all_labels, i64 samples,
          i64 start, i64 stop, float scale, float momentum, const float* rates, float* parameters, float* velocities, i64 size,
          float* all_losses, bool* all_correct, i64* clocks, float2* exchange, u32 first_step)
{
#ifdef TIMING
    i64 last = clock64(), spent[8] = {};
#define MARK(n) if (tid == 0) { i64 now = clock64(); spent[n] += now - last; last = now; }
#else
#define MARK(n)
#endif
    DYNAMIC_SHARED(Shared, memory);
    Shared& s = memory[0];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int me = blockIdx.x % BLOCKS, net = blockIdx.x / BLOCKS, first = me * UNITS;
    // [owner][from][sample][class], then [sample][class]; padded so that samples begin at multiples of 16 bytes
    float2* parts = exchange + (i64)net * (BLOCKS * BLOCKS * SPB + CHUNKS * 32) * 12;
    float2* errors = parts + BLOCKS * BLOCKS * SPB * 12;
    const float rate = rates[net];
    const i64* order = orders + net * samples;
    const i64* labels = all_labels + net * samples;
    float* losses = all_losses + net * samples;
    bool* correct = all_correct + net * samples;
    float *W1 = parameters + net * size, *W2 = W1 + INPUTS * HIDDEN, *B1 = W2 + HIDDEN * CLASSES, *B2 = B1 + HIDDEN;
    float *V1 = velocities + net * size, *V2 = V1 + INPUTS * HIDDEN, *VB1 = V2 + HIDDEN * CLASSES, *VB2 = VB1 + HIDDEN;
    const int steps = (int)((stop - start + BATCH - 1) / BATCH);

    for (int k = tid; k < (int)(sizeof(Shared) / 4); k += THREADS)
        ((int*)&s)[k] = 0;
    __syncthreads();
    if (tid == 0) {
        for (int k = 0; k < SLOTS; k++) init(&s.full[k],
#ifdef BULK
                                          1
#else
                                          THREADS
#endif
        );
    }
    for (int k = tid; k < UNITS * CLASSES; k += THREADS)
        if (first + k / CLASSES < HIDDEN) s.w2[k / CLASSES][k % CLASSES] = W2[(first + k / CLASSES) * CLASSES + k % CLASSES];
    if (tid < UNITS && first + tid < HIDDEN) s.b1[tid] = B1[first + tid];
    if (tid < CLASSES) s.b2[tid] = B2[tid];
#ifdef BULK
    fence_async();
#endif
    __syncthreads();

    // Rows are read ahead, a chunk at a time, into one slot after the other; a warp reads four of them.
    int issued_slot = 0, issued_step = 0, issued_chunk = 0;
    i64 next_row = -1;
    auto look_up = [&]() {  // the numbers of the next chunk's rows, in lanes 0..3
        int chunk = issued_chunk < CHUNKS ? issued_chunk : issued_chunk - CHUNKS, in_batch = chunk * 32 + warp + 8 * (lane & 3);
        i64 at = start + (i64)issued_step * BATCH + in_batch;
        next_row = in_batch < BATCH && at < stop ? order[at] : -1;
    };
    auto issue = [&]() {
        if (issued_step >= steps) return;
#ifdef BULK
        if (lane < 4 && next_row >= 0) bulk(addr(&s.x[issued_slot][warp + 8 * lane][0]), source + next_row * INPUTS, INPUTS * 2, &s.full[issued_slot]);
        if (tid == 0) {
            int chunk = issued_chunk < CHUNKS ? issued_chunk : issued_chunk - CHUNKS;
            int rows = min(32, BATCH - chunk * 32);
            if (issued_step + 1 == steps) rows = (int)max((i64)0, min(stop - (start + (i64)issued_step * BATCH + chunk * 32), (i64)rows));
            expect(&s.full[issued_slot], rows * INPUTS * 2);
        }
#else
#pragma unroll
        for (int r = 0; r < 4; r++) {
            i64 row = __shfl_sync(~0u, next_row, r);
            if (row < 0) continue;
            const u16* from = source + row * INPUTS + lane * 8;
            u32 to = addr(&s.x[issued_slot][warp + 8 * r][0]) + lane * 16;
#pragma unroll
            for (int k = 0; k < INPUTS / 8; k += 32)
                if (k + lane < INPUTS / 8)
                    copy16(to + k * 16, from + k * 8);
        }
        copies_arrive(&s.full[issued_slot]);
#endif
        if (++issued_slot == SLOTS) issued_slot = 0;
        if (++issued_chunk == LOADS) issued_chunk = 0, issued_step++;
        look_up();
    };
    look_up();
    for (int k = 0; k < SLOTS; k++) issue();

    // what a thread keeps: its part of W1 and, of W2, b1 and b2, one number
    float w[TILES][4], v[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int kt = i * WARPS + warp, input = kt * 16 + e / 2 * 8 + 2 * t + e % 2, unit = first + g;
            bool there = kt < K16 && unit < HIDDEN;
            w[i][e] = there ? W1[(i64)input * HIDDEN + unit] : 0;
            v[i][e] = there ? V1[(i64)input * HIDDEN + unit] : 0;
        }
    float *own = 0, *own_velocity = 0, *own_shared = 0;
    const int which = lane & 15, second = warp + 8 < CLASSES ? warp + 8 : warp;
    if (which < CLASSES) {
        if (first + warp < HIDDEN) own = W2 + (first + warp) * CLASSES + which, own_velocity = V2 + (first + warp) * CLASSES + which;
        own_shared = &s.w2[warp][which];
    } else if (which == CLASSES) {
        if (first + warp < HIDDEN) own = B1 + first + warp, own_velocity = VB1 + first + warp;
        own_shared = &s.b1[warp];
    } else if (which <= CLASSES + 2) {
        int c = which == CLASSES + 1 ? warp : second;
        if (c < CLASSES) own = B2 + c, own_velocity = VB2 + c, own_shared = &s.b2[c];
    }
    if (lane >= 16) own_shared = 0;
    float p = own ? *own : 0, q = own ? *own_velocity : 0;

    int base_slot = 0;  // where the first chunk of a step lies
    u32 base_phase = 0;
    auto place = [&](int load, int& slot, u32& phase) {  // load of this step
        slot = base_slot + load % SLOTS, phase = base_phase ^ (load / SLOTS & 1);
        if (slot >= SLOTS) slot -= SLOTS, phase ^= 1;
    };
    const u32 lane_offset = (lane & 15) * XS + (lane >> 4) * 16;
    const int owned = max(0, min(SPB, BATCH - (int)me * SPB));
    for (int step = 0; step < steps; step++) {
        const i64 begin = start + (i64)step * BATCH;
        const int batch = (int)min((i64)BATCH, stop - begin);
        const u32 tag = first_step + step;
        int label[ROUNDS];
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            int j = (tid + r * THREADS) / 16, b = me * SPB + j;
            label[r] = j < SPB && b < batch ? (int)labels[begin + b] : 0;
        }
        u32 part[TILES][PARTS][2];
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float lo = w[i][2 * k], hi = w[i][2 * k + 1];
#pragma unroll
                for (int r = 0; r < PARTS; r++) part[i][r][k] = take(lo, hi);
            }
        MARK(7)
        // forward
        for (int c = 0; c < CHUNKS; c++) {
            int slot;
            u32 phase;
            place(c, slot, phase);
            wait(&s.full[slot], phase);
            float acc[2][2][4] = {};
            MARK(1)
            u32 x0 = addr(&s.x[slot][0][0]) + lane_offset;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                int kt = min(i * WARPS + warp, K16 - 1);  // a warp without a last tile has zeros as weights
                u32 a[2][4];
                ldm(a[0], x0 + kt * 32);
                ldm(a[1], x0 + 16 * XS + kt * 32);
#pragma unroll
                for (int r = 0; r < PARTS; r++)
#pragma unroll
                    for (int m = 0; m < 2; m++) mma(acc[i & 1][m], a[m], part[i][r][0], part[i][r][1]);
            }
            MARK(2)
#pragma unroll
            for (int m = 0; m < 2; m++) {
                *(float2*)&s.red[c & 1][warp][m * 16 + g][2 * t] = make_float2(acc[0][m][0] + acc[1][m][0], acc[0][m][1] + acc[1][m][1]);
                *(float2*)&s.red[c & 1][warp][m * 16 + g + 8][2 * t] = make_float2(acc[0][m][2] + acc[1][m][2], acc[0][m][3] + acc[1][m][3]);
            }
            sync();
            if (SLOTS > 1 && c == 0 && step > 0) issue();  // where the last chunk of the step before lay
            if (c < CHUNKS - SLOTS) issue();
            // a thread has one unit of one sample; its part of the logits, summed over the 8 lanes of the sample, goes at once
            // to the block that owns the sample
            int row = tid >> 3, u = tid & 7, b = c * 32 + row;
            float sum = 0;
#pragma unroll
            for (int k = 0; k < WARPS; k++) sum += s.red[c & 1][k][row][u];
            float a1 = fmaxf(scale * sum + s.b1[u], 0.f);
            s.a1[b][u] = a1;
            float z[16];
#pragma unroll
            for (int n = 0; n < 3; n++) *(float4*)&z[4 * n] = *(float4*)&s.w2[u][4 * n];
#pragma unroll
            for (int n = 0; n < 12; n++) z[n] *= a1;
#pragma unroll
            for (int n = 12; n < 16; n++) z[n] = 0;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                float low = z[k], high = z[k + 8];
                z[k] = (lane & 4 ? high : low) + __shfl_xor_sync(~0u, lane & 4 ? low : high, 4);
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float low = z[k], high = z[k + 4];
                z[k] = (lane & 2 ? high : low) + __shfl_xor_sync(~0u, lane & 2 ? low : high, 2);
            }
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float low = z[k], high = z[k + 2];
                z[k] = (lane & 1 ? high : low) + __shfl_xor_sync(~0u, lane & 1 ? low : high, 1);
            }
            if (b < BATCH && u < 5) tell(parts + (((b / SPB) * BLOCKS + me) * SPB + b % SPB) * 12 + 2 * u, z[0], z[1], tag);
            MARK(0)
        }
        MARK(0)
        // softmax of the own samples, 16 lanes a sample; output errors to all blocks
        if (warp * 2 < SPB) {
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                int j = (tid + r * THREADS) / 16, c = lane & 15, b = me * SPB + j;
                if (__all_sync(~0u, j >= owned)) break;
                bool there = j < owned && b < batch;
                float z = -1e30f;
                if (j < owned && c < CLASSES) {
                    float2 part[BLOCKS];
                    bool here;
                    do {
                        here = true;
#pragma unroll
                        for (int k = 0; k < BLOCKS; k++) part[k] = look(parts + ((me * BLOCKS + k) * SPB + j) * 12 + c);
#pragma unroll
                        for (int k = 0; k < BLOCKS; k++) here = here && __float_as_uint(part[k].y) == tag;
                    } while (!here);
                    z = s.b2[c];
#pragma unroll
                    for (int k = 0; k < BLOCKS; k++) z += part[k].x;
                }
                float m = z;
#pragma unroll
                for (int o = 8; o; o /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, o, 16));
                float e = c < CLASSES ? expf(z - m) : 0.f, sum = e;
#pragma unroll
                for (int o = 8; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o, 16);
                float delta = there && c < CLASSES ? (e / sum - (c == label[r])) / batch : 0.f;
                if (j < owned && c < 12) tell(errors + b * 12 + c, delta, tag);
                float z_label = __shfl_sync(~0u, z, label[r], 16);
                u32 best = (__ballot_sync(~0u, z == m) >> (lane & 16)) & 0xffff;
                if (there && c == 0) {
                    losses[begin + b] = logf(sum) - (z_label - m);
                    correct[begin + b] = __ffs(best) - 1 == label[r];
                }
            }
        }
        MARK(3)
        sync();  // red has been read: d2 lies where red[1] was
        {
            float4 two[LOOKS];
            bool here;
            do {
                here = true;
#pragma unroll
                for (int r = 0; r < LOOKS; r++) two[r] = look2(errors + min(tid + r * THREADS, BATCH * 6 - 1) * 2);
#pragma unroll
                for (int r = 0; r < LOOKS; r++) here = here && __float_as_uint(two[r].y) == tag && __float_as_uint(two[r].w) == tag;
            } while (!here);
#pragma unroll
            for (int r = 0; r < LOOKS; r++) {
                int k = tid + r * THREADS;
                if (k < BATCH * 6) *(float2*)&s.d2[k / 6][k % 6 * 2] = make_float2(two[r].x, two[r].z);
            }
        }
        sync();
        MARK(4)
        // backward
        float G[TILES][8] = {}, values[16] = {};
        for (int k = 0; k < CHUNKS; k++) {
            int c = CHUNKS <= SLOTS ? k : k < SLOTS ? CHUNKS - SLOTS + k : k - SLOTS;
            int slot;
            u32 phase;
            place(CHUNKS <= SLOTS || k < SLOTS ? c : CHUNKS + c, slot, phase);
            {
                float d[12], sum = 0;
                int b = c * 32 + lane;
#pragma unroll
                for (int n = 0; n < 3; n++) *(float4*)&d[4 * n] = *(float4*)&s.d2[b][4 * n];
                float a = s.a1[b][warp], first_error = s.d2[b][warp], second_error = s.d2[b][second];
                if (b >= BATCH) {  // rows of d2 that no step writes hold what red left there
                    a = first_error = second_error = 0;
#pragma unroll
                    for (int n = 0; n < 12; n++) d[n] = 0;
                }
#pragma unroll
                for (int n = 0; n < 3; n++) {
                    float4 y = *(float4*)&s.w2[warp][n * 4];
                    sum += d[4 * n] * y.x + d[4 * n + 1] * y.y + d[4 * n + 2] * y.z + d[4 * n + 3] * y.w;
                }
                float delta = a > 0 ? sum : 0.f, none = 0.f;
#pragma unroll
                for (int n = 0; n < CLASSES; n++) values[n] += a * d[n];
                values[CLASSES] += delta, values[CLASSES + 1] += first_error, values[CLASSES + 2] += second_error;
#pragma unroll
                for (int n = 0; n < PARTS; n++) s.dt[k & 1][n][warp][lane] = (u16)take(delta, none);
            }
            sync();
            MARK(6)
            if (k > 0) issue();
            MARK(7)
            wait(&s.full[slot], phase);
            MARK(1)
            u32 A[2][(PARTS + 1) / 2][4];  // rows 0 to 7 are one part of the errors, rows 8 to 15 the next
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int n = 0; n < PARTS; n += 2) {
                    ldm(A[h][n / 2], addr(&s.dt[k & 1][n + 1 < PARTS ? n + (lane >> 3 & 1) : n][lane & 7][h * 16 + (lane >> 4) * 8]));
                    if (n + 1 == PARTS) A[h][n / 2][1] = A[h][n / 2][3] = 0;
                }
            u32 x0 = addr(&s.x[slot][0][0]) + lane_offset;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                int kt = min(i * WARPS + warp, K16 - 1);
                u32 b[2][4];
                ldmt(b[0], x0 + kt * 32);
                ldmt(b[1], x0 + 16 * XS + kt * 32);
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int n = 0; n < (PARTS + 1) / 2; n++) {
                        mma(&G[i][0], A[h][n], b[h][0], b[h][1]);
                        mma(&G[i][4], A[h][n], b[h][2], b[h][3]);
                    }
            }
            MARK(5)
        }
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float gradient = G[i][e / 2 * 4 + e % 2] + G[i][e / 2 * 4 + e % 2 + 2];
                v[i][e] = momentum * v[i][e] + scale * gradient;
                if (i + 1 < TILES || i * WARPS + warp < K16) w[i][e] -= rate * v[i][e];
            }
        halve<8>(values, lane);
        halve<4>(values, lane);
        halve<2>(values, lane);
        halve<1>(values, lane);
        float small = values[0] + __shfl_xor_sync(~0u, values[0], 16);
        q = momentum * q + small;
        p -= rate * q;
        if (own_shared) *own_shared = p;
        {
            int slot;
            place(LOADS, slot, base_phase), base_slot = slot;
        }
        if (SLOTS == 1) {  // the next step waits for its first chunk before anything else, so this cannot wait for that step
            sync();
            issue();
        }
        MARK(7)
    }
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int kt = i * WARPS + warp, input = kt * 16 + e / 2 * 8 + 2 * t + e % 2, unit = first + g;
            if (kt < K16 && unit < HIDDEN) W1[(i64)input * HIDDEN + unit] = w[i][e], V1[(i64)input * HIDDEN + unit] = v[i][e];
        }
    if (own && lane < 16 && (which <= CLASSES || (me == 0 && (which == CLASSES + 1 || warp + 8 < CLASSES)))) *own = p, *own_velocity = q;
#ifdef TIMING
    if (tid == 0 && blockIdx.x == 0)
        for (int k = 0; k < 8; k++) clocks[k] = spent[k];
#endif
}
