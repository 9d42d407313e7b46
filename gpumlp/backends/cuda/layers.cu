// Narrow layers forward and backward, sums of columns (bias gradients), and dropout. Wide layers are products by cuBLAS;
// activation.cu has the activations.

// A layer is narrow if it has few units: as many as a thread has registers for, as in kernels.py.
#define NARROW 16
#define NARROW_ROWS 8  // of threads in a block
#define NARROW_SAMPLES 64  // of which the error terms are in shared memory at a time

typedef Pack<real, 4> Four;

// Add the values of the lane that differs in bit COUNT of its index; each of the two lanes keeps one half of the sums.
template <int COUNT> __device__ void halve(real* values, int lane)
{
#pragma unroll
    for (int k = 0; k < COUNT / 2; k++) {
        real low = values[k], high = values[k + COUNT / 2];
        values[k] = (lane & COUNT ? high : low) + __shfl_xor_sync(0xffffffff, lane & COUNT ? low : high, COUNT);
    }
}

// Lane l of a warp gets the sum of value l / 2 over all lanes, in 16 shuffles; separate sums would need 80.
__device__ real sum_over_warp(real (&values)[16], int lane)
{
    halve<16>(values, lane);
    halve<8>(values, lane);
    halve<4>(values, lane);
    halve<2>(values, lane);
    return values[0] + __shfl_xor_sync(0xffffffff, values[0], 1);
}

// Part of narrow_forward: out[i] = x[i] W + b, one warp per sample, with W in shared memory in GROUPS groups of four
// columns. A thread multiplies every 32nd input.
template <int GROUPS>
__device__ void forward_of_samples(const real* x, const Four* weights, const real* bias, int64 batch, int units,
                                   int outputs, real* out)
{
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        real sums[NARROW] = {};
#pragma unroll 4
        for (int unit = threadIdx.x; unit < units; unit += 32) {
            real value = x[i * units + unit];
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                Four weight = weights[group * units + unit];
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sums[4 * group + k] += value * weight.at[k];
            }
        }
        real sum = sum_over_warp(sums, threadIdx.x);
        int output = threadIdx.x / 2;
        if (threadIdx.x % 2 == 0 && output < outputs)
            out[i * outputs + output] = sum + bias[output];
    }
}

// out = x W + b for up to NARROW outputs, with W in shared memory; blocks of 32 x NARROW_ROWS threads
extern "C" __global__ void narrow_forward(const real* x, const real* weight, const real* bias, int64 batch, int units,
                                          int outputs, real* out)
{
    extern __shared__ Four weights[];
    int groups = (outputs + 3) / 4, padded = 4 * groups;
#pragma unroll 8
    for (int k = threadIdx.y * 32 + threadIdx.x; k < units * padded; k += 32 * NARROW_ROWS) {
        int unit = k / padded, output = k % padded;
        weights[output / 4 * units + unit].at[output % 4] = output < outputs ? weight[unit * outputs + output] : 0;
    }
    __syncthreads();
    switch (groups) {
    case 1: return forward_of_samples<1>(x, weights, bias, batch, units, outputs, out);
    case 2: return forward_of_samples<2>(x, weights, bias, batch, units, outputs, out);
    case 3: return forward_of_samples<3>(x, weights, bias, batch, units, outputs, out);
    default: return forward_of_samples<4>(x, weights, bias, batch, units, outputs, out);
    }
}

// Part of narrow_backward. The sums of x^T delta over the samples of this block, one column of x per thread, are left
// in `sums`, and the error term of the layer below is written. `deltas` is delta in shared memory, some samples at a
// time, in GROUPS groups of four outputs.
template <int GROUPS>
__device__ void backward_of_samples(const real* x, const real* weight, const real* delta, int64 batch, int units,
                                    int outputs, Four* deltas, real (*sums)[NARROW][32], real* input_delta)
{
    const int EACH = NARROW_SAMPLES / NARROW_ROWS;
    int64 each = (batch + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * each, end = min(begin + each, batch);
    int unit = blockIdx.x * 32 + threadIdx.x;
    bool inside = unit < units;
    real weights[4 * GROUPS], sum[4 * GROUPS] = {};
#pragma unroll
    for (int j = 0; j < 4 * GROUPS; j++)
        weights[j] = inside && j < outputs && input_delta ? weight[unit * outputs + j] : 0;
    for (int64 first = begin; first < end; first += NARROW_SAMPLES) {
        real values[EACH];
#pragma unroll
        for (int r = 0; r < EACH; r++) {
            int64 i = first + r * NARROW_ROWS + threadIdx.y;
            values[r] = inside && i < end ? x[i * units + unit] : 1;
        }
        __syncthreads();  // all have read the samples before
        for (int k = threadIdx.y * 32 + threadIdx.x; k < NARROW_SAMPLES * 4 * GROUPS; k += 32 * NARROW_ROWS) {
            int64 i = first + k / (4 * GROUPS);
            int j = k % (4 * GROUPS);
            deltas[k / 4].at[k % 4] = i < end && j < outputs ? delta[i * outputs + j] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < EACH; r++) {
            int row = r * NARROW_ROWS + threadIdx.y;
            real product = 0;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                Four error = deltas[row * GROUPS + group];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    sum[4 * group + k] += values[r] * error.at[k];
                    product += weights[4 * group + k] * error.at[k];
                }
            }
            if (input_delta && inside && first + row < end)
                input_delta[(first + row) * units + unit] = product;
        }
    }
#pragma unroll
    for (int j = 0; j < 4 * GROUPS; j++)
        sums[threadIdx.y][j][threadIdx.x] = sum[j];
    __syncthreads();
}

// The gradients of a layer of up to NARROW units: dW = keep dW + x^T delta, db = the sum of delta, and input_delta =
// delta W^T; the latter two unless they are null. The bias is treated as the weight of one more input, which is 1. Blocks of 32 x
// NARROW_ROWS threads; blocks of one column of the grid divide the samples, and the last one adds their sums in order.
// `partials` has 32 NARROW numbers for each block.
extern "C" __global__ __launch_bounds__(32 * NARROW_ROWS) void narrow_backward(
    const real* x, const real* weight, const real* delta, int64 batch, int units, int outputs, real keep,
    real* partials, unsigned* arrived, real* weight_gradient, real* bias_gradient, real* input_delta)
{
    __shared__ Four deltas[NARROW_SAMPLES * NARROW / 4];
    __shared__ real sums[NARROW_ROWS][NARROW][32];
    switch ((outputs + 3) / 4) {
    case 1: backward_of_samples<1>(x, weight, delta, batch, units, outputs, deltas, sums, input_delta); break;
    case 2: backward_of_samples<2>(x, weight, delta, batch, units, outputs, deltas, sums, input_delta); break;
    case 3: backward_of_samples<3>(x, weight, delta, batch, units, outputs, deltas, sums, input_delta); break;
    default: backward_of_samples<4>(x, weight, delta, batch, units, outputs, deltas, sums, input_delta);
    }
    int unit = blockIdx.x * 32 + threadIdx.x;
    real* own = partials + (int64)blockIdx.x * gridDim.y * NARROW * 32 + threadIdx.x;
    real totals[NARROW / NARROW_ROWS] = {};
    for (int k = 0; k < NARROW / NARROW_ROWS; k++) {
        int j = k * NARROW_ROWS + threadIdx.y;
        for (int y = 0; y < NARROW_ROWS && j < outputs; y++)
            totals[k] += sums[y][j][threadIdx.x];
        if (gridDim.y > 1 && j < outputs)
            own[(blockIdx.y * NARROW + j) * 32] = totals[k];
    }
    if (gridDim.y > 1 && !is_last_block(arrived))
        return;
    for (int k = 0; k < NARROW / NARROW_ROWS; k++) {
        int j = k * NARROW_ROWS + threadIdx.y;
        if (j >= outputs || unit > units)
            continue;
        if (gridDim.y > 1) {
            totals[k] = 0;
#pragma unroll 8
            for (unsigned y = 0; y < gridDim.y; y++)
                totals[k] += __ldcg(own + (y * NARROW + j) * 32);
        }
        if (unit == units) {
            if (bias_gradient)
                bias_gradient[j] = totals[k];
        } else if (keep == (real)0)
            weight_gradient[unit * outputs + j] = totals[k];
        else
            weight_gradient[unit * outputs + j] = weight_gradient[unit * outputs + j] * keep + totals[k];
    }
}

// sums[j] = sum over i of values[i, j]
extern "C" __global__ void column_sums(const real* values, int64 rows, int64 columns, real* partials,
                                       unsigned* arrived, real* sums)
{
    int64 column = global_x();
    real sum = 0;
    if (column < columns) {
#pragma unroll 4
        for (int64 row = global_y(); row < rows; row += threads_y())
            sum += values[row * columns + column];
    }
    sum_column(sum, columns, partials, arrived, sums);
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
