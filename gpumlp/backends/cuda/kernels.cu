// The CUDA kernels of the training operations; preceded by rules.cuh. base.py contains the reference implementations.
//
// Compiled with -DREAL=float or -DREAL=double by NVRTC when a GPU is first used. Without a GPU, tests compile this
// source for sm_80 and sm_90, and as C++ for the CPU, where they run it.
//
// Matrices are row-major and contiguous, and indices have 64 bits. No sum depends on the order in which threads run, so
// training is reproducible bit for bit.
//
// `position` is {samples, slots, steps}, so that a graph can be launched at any position of an epoch: the first two are
// added to the captured addresses and slots, the third is the number of steps taken before the launch. It is a null
// pointer if the call is not part of a graph, or its addresses do not depend on the position.

// The block size of column_sums, as in kernels.py.
#define SUM_COLUMNS 32
#define SUM_ROWS 32

// out[i, j] = source[rows[i], j] * scale
extern "C" __global__ void gather_pixels(const unsigned char* source, const int64* rows, int64 batch, int64 features,
                                         real scale, const int64* position, real* out)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        const unsigned char* row = source + rows[shift + i] * features;
        for (int64 j = global_x(); j < features; j += threads_x())
            out[i * features + j] = (real)row[j] * scale;
    }
}

// out[i, j] = source[rows[i], j]
extern "C" __global__ void gather_rows(const real* source, const int64* rows, int64 batch, int64 features,
                                       const int64* position, real* out)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        const real* row = source + rows[shift + i] * features;
        for (int64 j = global_x(); j < features; j += threads_x())
            out[i * features + j] = row[j];
    }
}

// sums[j] = sum over i of values[i, j]. A block sums 32 columns; each thread adds every 32nd row of one column.
extern "C" __global__ void column_sums(const real* values, int64 rows, int64 columns, real* sums)
{
    __shared__ real partial[SUM_ROWS][SUM_COLUMNS];
    int64 column = (int64)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    real sum = 0;
    if (column < columns)
        for (int64 row = threadIdx.y; row < rows; row += SUM_ROWS)
            sum += values[row * columns + column];
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
        for (int y = 1; y < SUM_ROWS; y++)
            sum += partial[y][threadIdx.x];
        sums[column] = sum;
    }
}

// Loss, correctness and error term, with one thread per sample: suitable for few classes.
extern "C" __global__ void softmax_cross_entropy(real* logits, const int64* labels, int64 batch, int64 classes,
                                                 const int64* position, real* losses, bool* correct)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_x(); i < batch; i += threads_x())
        softmax_of_sample(logits + i * classes, labels[shift + i], batch, classes, losses + shift + i,
                          correct + shift + i);
}

// The gradient of parameter i plus that of the penalty, for weights only; stored, as in the reference.
__device__ real penalised(real* gradient, const real* parameters, int64 i, int64 weights_start, int64 weights_stop,
                          real l2, real l1)
{
    real g = gradient[i];
    if (i < weights_start || i >= weights_stop || (l2 == (real)0 && l1 == (real)0))
        return g;
    g = add_penalty(g, parameters[i], l2, l1);
    gradient[i] = g;
    return g;
}

// The factors of a step; a graph reads them from the device, since they change between launches.
__device__ const real* factors_of(const real* factors, int count, int64 slot, const int64* position)
{
    return factors + count * (position[1] + slot);
}

// out = the factors of a step
extern "C" __global__ void load_factors(const real* factors, int count, int64 slot, const int64* position, real* out)
{
    for (int64 i = global_x(); i < count; i += threads_x())
        out[i] = factors_of(factors, count, slot, position)[i];
}

extern "C" __global__ void sgd_step(real* parameters, real* gradient, real* velocity, int64 size, int64 weights_start,
                                    int64 weights_stop, real l2, real l1, int rule, real momentum, real step_size,
                                    const real* factors, int count, int64 slot, const int64* position)
{
    if (position)
        step_size = factors_of(factors, count, slot, position)[0];
    for (int64 i = global_x(); i < size; i += threads_x()) {
        real g = penalised(gradient, parameters, i, weights_start, weights_stop, l2, l1);
        step_of_sgd(parameters + i, rule == PLAIN ? 0 : velocity + i, g, rule, momentum, step_size);
    }
}

extern "C" __global__ void adam_step(real* parameters, real* gradient, real* mean, real* mean_square, int64 size,
                                     int64 weights_start, int64 weights_stop, real l2, real l1, real beta1,
                                     real one_minus_beta1, real beta2, real one_minus_beta2, real step_size,
                                     real epsilon, real decay, const real* factors, int count, int64 slot,
                                     const int64* position)
{
    if (position) {
        const real* own = factors_of(factors, count, slot, position);
        step_size = own[0];
        epsilon = own[1];
        decay = count > 2 ? own[2] : (real)0;
    }
    for (int64 i = global_x(); i < size; i += threads_x()) {
        real g = penalised(gradient, parameters, i, weights_start, weights_stop, l2, l1);
        if (decay != (real)0 && i >= weights_start && i < weights_stop)
            parameters[i] -= parameters[i] * decay;
        real m = mean[i] * beta1 + g * one_minus_beta1;
        real v = mean_square[i] * beta2 + g * g * one_minus_beta2;
        mean[i] = m;
        mean_square[i] = v;
        parameters[i] -= m / (sqrt(v) + epsilon) * step_size;
    }
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

// out = x * keep * scale, where a unit is kept if its random bits reach the threshold. A thread computes eight units of
// a row, for which Philox gives the bits at once.
extern "C" __global__ void dropout(const real* x, int64 batch, int64 units, unsigned threshold, real scale,
                                   uint64 seed, uint64 purpose, uint64 step, uint64 layer, uint64 first_block,
                                   const int64* position, real* out)
{
    int64 blocks = (units + 7) / 8;
    step += position ? position[2] : 0;
    for (int64 k = global_x(); k < batch * blocks; k += threads_x()) {
        int64 row = k / blocks, first = k % blocks * 8;
        uint64 words[4] = {first_block + k, layer, step, 0};
        philox(words, seed, purpose);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            unsigned bits = (unsigned)(words[j / 2] >> j % 2 * 32);
            int64 i = row * units + first + j;
            if (first + j < units)
                out[i] = x[i] * (real)(bits >= threshold) * scale;
        }
    }
}

// delta[i, j] = delta[i, j] * weights[i], losses[i] = losses[i] * weights[i]
extern "C" __global__ void weigh(real* delta, int64 batch, int64 outputs, const int64* position, real* losses,
                                 const real* weights)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_y(); i < batch; i += threads_y())
        for (int64 j = global_x(); j < outputs; j += threads_x()) {
            real weight = weights[shift + i];
            delta[i * outputs + j] *= weight;
            if (j == 0)
                losses[shift + i] *= weight;
        }
}

// out = the rows of `source` at this position
extern "C" __global__ void load_rows(const unsigned char* source, int64 bytes, int64 row_bytes, const int64* position,
                                     unsigned char* out)
{
    for (int64 i = global_x(); i < bytes; i += threads_x())
        out[i] = source[position[0] * row_bytes + i];
}

// the rows of `out` at this position = source
extern "C" __global__ void store_rows(const unsigned char* source, int64 bytes, int64 row_bytes,
                                      const int64* position, unsigned char* out)
{
    for (int64 i = global_x(); i < bytes; i += threads_x())
        out[position[0] * row_bytes + i] = source[i];
}

extern "C" __global__ void set_position(int64* position, int64 samples, int64 slots, int64 steps)
{
    if (global_x() == 0) {
        position[0] = samples;
        position[1] = slots;
        position[2] = steps;
    }
}
