// Small kernels for test_emulator.py.
typedef unsigned int u32;
using namespace cuda_host;

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
