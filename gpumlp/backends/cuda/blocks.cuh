// The beginning of each source of kernels, except persistent.cu: types, indices, random bits, and what the threads of a
// block or of several blocks do together. base.py contains the reference implementations of the operations.
//
// NVRTC compiles a source with -DREAL=float or -DREAL=double when one of its kernels is first used, activation.cu once for
// each activation. Without a GPU, tests compile it for sm_80 and sm_90, and as C++ for the CPU, where they run it.
//
// Matrices are row-major and contiguous, and indices have 64 bits. No sum depends on the order in which threads run, so
// training is reproducible bit for bit.
//
// `position` is {samples, slots, steps}, so that a graph can be launched at any position of an epoch: the first two are
// added to the captured addresses and slots, the third is the number of steps taken before the launch. It is a null
// pointer if the call is not part of a graph, or its addresses do not depend on the position.

typedef REAL real;
typedef unsigned char u8;
typedef long long int64;
typedef unsigned long long uint64;

__device__ int64 global_x() { return (int64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ int64 global_y() { return (int64)blockIdx.y * blockDim.y + threadIdx.y; }
__device__ int64 threads_x() { return (int64)gridDim.x * blockDim.x; }
__device__ int64 threads_y() { return (int64)gridDim.y * blockDim.y; }

// The block size of kernels that sum columns, as in kernels.py.
#define SUM_COLUMNS 32
#define SUM_ROWS 32

#define AT_ONCE 4  // concurrent reads of a thread, in loops that also write

// WIDTH consecutive numbers, which a thread reads or writes with as few accesses as possible
template <typename T, int WIDTH> struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Pack { T at[WIDTH]; };

// Whether all other blocks of this column of the grid have got here before, so that this one sees what they have
// written to global memory. `arrived` has a counter for each column, which is 0 before and after a launch.
__device__ bool is_last_block(unsigned* arrived)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        last = atomicAdd(arrived + blockIdx.x, 1u) == gridDim.y - 1;
        if (last)
            arrived[blockIdx.x] = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// sums[column] = the sum of `value` over the rows of threads of all blocks of this column of the grid, for blocks of
// SUM_COLUMNS x SUM_ROWS threads. The order of additions is fixed: the last block adds the blocks' sums one by one.
// `partials` has SUM_COLUMNS numbers for each block.
__device__ void sum_column(real value, int64 columns, real* partials, unsigned* arrived, real* sums)
{
    __shared__ real of_rows[SUM_ROWS][SUM_COLUMNS];
    int64 column = (int64)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    of_rows[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll 8
        for (int y = 1; y < SUM_ROWS; y++)
            value += of_rows[y][threadIdx.x];
    }
    if (gridDim.y > 1) {
        real* own = partials + (int64)blockIdx.x * gridDim.y * SUM_COLUMNS + threadIdx.x;
        if (threadIdx.y == 0)
            own[blockIdx.y * SUM_COLUMNS] = value;
        if (!is_last_block(arrived))
            return;
        if (threadIdx.y == 0) {
            value = 0;
#pragma unroll 8
            for (unsigned y = 0; y < gridDim.y; y++)
                value += __ldcg(own + y * SUM_COLUMNS);
        }
    }
    if (threadIdx.y == 0 && column < columns)
        sums[column] = value;
}

// Philox 4x64-10: the random words of a counter, in place; see philox.py.
__device__ void philox(uint64* x, uint64 key0, uint64 key1)
{
    for (int round = 0; round < 10; round++) {
        uint64 high0 = __umul64hi(0xD2E7470EE14C6C93ULL, x[0]), low0 = 0xD2E7470EE14C6C93ULL * x[0];
        uint64 high1 = __umul64hi(0xCA5A826395121157ULL, x[2]), low1 = 0xCA5A826395121157ULL * x[2];
        x[0] = high1 ^ x[1] ^ key0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ key1;
        x[3] = low0;
        key0 += 0x9E3779B97F4A7C15ULL;
        key1 += 0xBB67AE8584CAA73BULL;
    }
}

// The factors of a step; a graph reads them from the device, since they change between launches.
__device__ const real* factors_of(const real* factors, int count, int64 slot, const int64* position)
{
    return factors + count * (position[1] + slot);
}
