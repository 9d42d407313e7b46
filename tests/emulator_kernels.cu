// Small kernels for test_emulator.py. `bug` other than 0 leaves out or weakens one synchronization, or breaks a rule.
typedef unsigned int u32;
using namespace cuda_host;

// out[block][i] = in[block][n - 1 - i]; bug 1: no barrier
extern "C" __global__ void reverse(const float* in, float* out, int bug)
{
    float* buffer = (float*)dynamic_shared();
    int t = threadIdx.x, n = blockDim.x, i = (blockIdx.y * gridDim.x + blockIdx.x) * n + t;
    buffer[t] = in[i];
    if (!bug) __syncthreads();
    out[i] = buffer[n - 1 - t];
}

// out[t] = sum over k of the float4 in[k][t + 1], while in[k + 1] is copied. bug 1: waits for the wrong group; 2: no
// barrier before the copies of others are read; 3: none before they are overwritten
extern "C" __global__ void pipeline(const float4* in, float* out, int tiles, int bug)
{
    float4* buffer = (float4*)dynamic_shared();
    int t = threadIdx.x, n = blockDim.x;
    auto issue = [&](int k) {
        if (k < tiles) cp_async(shared_address(&buffer[k % 2 * n + t]), &in[k * n + t], 16);
        cp_async_commit_group();
    };
    float sum = 0;
    issue(0);
    for (int k = 0; k < tiles; k++) {
        issue(k + 1);
        cp_async_wait_group(bug == 1 ? 2 : 1);
        if (bug != 2) __syncthreads();
        float4 v = buffer[k % 2 * n + (t + 1) % n];
        sum += v.x + v.y + v.z + v.w;
        if (bug != 3) __syncthreads();
    }
    cp_async_wait_group(-1);
    out[t] = sum;
}

// Shuffles, votes and __syncwarp: out[t][0..7]. bug 1: no __syncwarp
extern "C" __global__ void warp(const int* in, int* out, int bug)
{
    int* buffer = (int*)dynamic_shared();
    int t = threadIdx.x, lane = t % 32, v = in[t];
    int* o = out + 8 * t;
    o[0] = __shfl_up_sync(~0u, v, 3, 16);
    o[1] = __shfl_down_sync(~0u, v, 5, 8);
    o[2] = __shfl_xor_sync(~0u, v, 9);
    o[3] = __shfl_sync(~0u, v, 21);
    o[4] = (int)__ballot_sync(~0u, v & 1);
    o[5] = __all_sync(~0u, v >= 0) * 2 + __any_sync(~0u, v == in[t - lane]);
    buffer[t] = v;
    if (!bug) __syncwarp();
    o[6] = buffer[t ^ 1];
    o[7] = 0;
    if (lane < 8) o[7] = __shfl_sync(0xffu, v, 7 - lane);
}

// Block 0 sends values beside a tag, the others wait for them. bug 1: in vectors, which may be seen torn; 2: only the
// first tag is checked; 3: nobody waits
extern "C" __global__ void exchange(float2* pairs, float* out, int bug)
{
    int t = threadIdx.x;
    for (u32 tag = 1; tag < 4; tag++) {
        float value = 1000.f * tag + t;
        if (blockIdx.x == 0) {
            float2 two[2] = {{value, __uint_as_float(tag)}, {-value, __uint_as_float(tag)}};
            if (bug == 1) store(pairs + 2 * (tag * 64 + t), two, 4, 4);
            else store(pairs + 2 * (tag * 64 + t), two, 8, 2);
        } else {
            float2 two[2];
            do load(pairs + 2 * (tag * 64 + t), two, bug == 1 ? 4 : 8, bug == 1 ? 4 : 2);
            while (bug != 3 && (__float_as_uint(two[0].y) != tag || (bug != 2 && __float_as_uint(two[1].y) != tag)));
            out[((blockIdx.x - 1) * 4 + tag) * 64 + t] = two[0].x - two[1].x;
        }
    }
}

// Warp 0 fills a buffer that warp 1 empties, by two mbarriers. bug 1: full, 2: empty is not waited for; 3: the count is
// too large
extern "C" __global__ void queue(const float* in, float* out, int n, int bug)
{
    float* buffer = (float*)dynamic_shared();
    int t = threadIdx.x, lane = t % 32;
    u32 full = shared_address(buffer + 32), empty = full + 8;
    if (t == 0) {
        mbarrier_init(full, 32 + (bug == 3));
        mbarrier_init(empty, 32);
    }
    __syncthreads();
    for (int k = 0; k < n; k++) {
        if (t < 32) {
            while (bug != 2 && !mbarrier_test_wait_parity(empty, (k & 1) ^ 1)) {}
            buffer[lane] = in[k * 32 + lane];
            mbarrier_arrive(full);
        } else {
            while (bug != 1 && !mbarrier_test_wait_parity(full, k & 1)) {}
            out[k * 32 + lane] = buffer[31 - lane];
            mbarrier_arrive(empty);
        }
    }
}

// Rows arrive by cp.async and an mbarrier, or, in the other half of the buffer, by bulk copies. bug 1: they are not
// waited for; 2: copies do not arrive at the mbarrier; 3: too few bytes are expected
extern "C" __global__ void rows(const float4* in, float* out, int bug)
{
    float4* buffer = (float4*)dynamic_shared();
    int t = threadIdx.x, n = blockDim.x;
    u32 here = shared_address(buffer + n), all = here + 8;
    if (t == 0) {
        mbarrier_init(here, n / 2);
        mbarrier_init(all, 1);
    }
    __syncthreads();
    if (t < n / 2) {
        cp_async(shared_address(&buffer[t]), &in[t], 16);
        if (bug == 2) mbarrier_arrive(here);
        else cp_async_mbarrier_arrive_noinc(here);
    } else {
        if (t == n / 2) mbarrier_arrive_expect_tx(all, (n / 2 - (bug == 3)) * 16);
        if (bug != 3 || t < n - 1) cp_async_bulk(shared_address(&buffer[t]), &in[t], 16, all);
    }
    while (bug != 1 && !(mbarrier_test_wait_parity(here, 0) && mbarrier_test_wait_parity(all, 0))) {}
    out[t] = buffer[n - 1 - t].y;
    if (bug) cp_async_wait_group(-1);
}

// d += a b of a 16 x 16 and an 8 x 16 (transposed) matrix in bf16, rows by ldmatrix
extern "C" __global__ void product(const unsigned short* a, const unsigned short* b, float* d)
{
    unsigned short(*A)[16] = (unsigned short(*)[16])dynamic_shared(), (*B)[16] = A + 16;
    int lane = threadIdx.x, row = lane / 4, pair = lane % 4 * 2;
    for (int k = lane; k < 256; k += 32) A[k / 16][k % 16] = a[k];
    for (int k = lane; k < 128; k += 32) B[k / 16][k % 16] = b[k];
    __syncwarp();
    u32 fa[4], fb[2];
    ldmatrix(fa, shared_address(&A[lane & 15][lane / 16 * 8]), 4, false);
    ldmatrix(fb, shared_address(&B[lane & 7][(lane >> 3 & 1) * 8]), 2, false);
    float *low = d + row * 8 + pair, *high = low + 64, v[4] = {low[0], low[1], high[0], high[1]};
    mma_m16n8k16_bf16(v, fa, fb[0], fb[1]);
    low[0] = v[0], low[1] = v[1], high[0] = v[2], high[1] = v[3];
}

extern "C" __global__ void to_bf16(const float* in, unsigned short* out)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __float2bfloat16_rn(in[i]).x;
}

// What a GPU does not check. bug 1: an address that is not aligned; 2: a lane that is missing; 3: an mbarrier that was
// overwritten; 4: past the shared memory; 5: a copy at the end that nobody waits for; 6: a tag that never comes;
// 7: an address without memory
extern "C" __global__ void wrong(float* in, int bug)
{
    float* buffer = (float*)dynamic_shared();
    if (bug == 1) load(in + 1, buffer, 8, 1);
    if (bug == 2 && threadIdx.x < 8) __syncwarp(), __syncthreads();
    if (bug == 3 && threadIdx.x == 0) {
        mbarrier_init(shared_address(buffer), 1);
        buffer[0] = 1;
        mbarrier_arrive(shared_address(buffer));
    }
    if (bug == 4) buffer[blockDim.x] = 1;
    if (bug == 5) cp_async(shared_address(buffer), in, 16);
    while (bug == 6) load(in + 2, buffer, 8, 1);
    if (bug == 7) __syncthreads(), *(float*)(size_t)(bug * 8) = 1;
}
