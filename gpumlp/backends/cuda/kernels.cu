// The CUDA kernels of the training operations; preceded by blocks.cuh. base.py contains the reference implementations.
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

// A layer is narrow if it has few units: as many as a thread has registers for, as in kernels.py.
#define NARROW 16
#define NARROW_ROWS 8  // of threads in a block
#define NARROW_SAMPLES 64  // of which the error terms are in shared memory at a time

#define TOTAL_THREADS 256  // of a block that adds up numbers, as in kernels.py

// The variants of SGD, numbered as in kernels.py.
#define PLAIN 0
#define MOMENTUM 1
#define NESTEROV 2
#define ACCUMULATED 3  // momentum, with the velocities of the weights written by matrix products

typedef Pack<real, 4> Four;

// out[i, j] = source[rows[i], j] * scale, WIDTH columns at a time
template <typename T, int WIDTH>
__device__ void gather(const T* source, const int64* rows, int64 batch, int64 features, real scale, real* out)
{
    int64 count = features / WIDTH, across = threads_x();
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        const Pack<T, WIDTH>* from = (const Pack<T, WIDTH>*)(source + rows[i] * features);
        Pack<real, WIDTH>* to = (Pack<real, WIDTH>*)(out + i * features);
        for (int64 first = global_x(); first < count; first += AT_ONCE * across) {
            Pack<T, WIDTH> read[AT_ONCE];
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++)
                read[r] = from[min(first + r * across, count - 1)];  // repeats the last one instead of branching
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                Pack<real, WIDTH> scaled;
                for (int k = 0; k < WIDTH; k++)
                    scaled.at[k] = (real)read[r].at[k] * scale;
                if (first + r * across < count)
                    to[first + r * across] = scaled;
            }
        }
    }
}

// out[i, j] = source[rows[i], j] * scale
extern "C" __global__ void gather_pixels(const unsigned char* source, const int64* rows, int64 batch, int64 features,
                                         real scale, int width, const int64* position, real* out)
{
    const int64* own = rows + (position ? position[0] : 0);
    if (width == 4)
        gather<unsigned char, 4>(source, own, batch, features, scale, out);
    else
        gather<unsigned char, 1>(source, own, batch, features, scale, out);
}

// out[i, j] = source[rows[i], j]
extern "C" __global__ void gather_rows(const real* source, const int64* rows, int64 batch, int64 features, int width,
                                       const int64* position, real* out)
{
    const int64* own = rows + (position ? position[0] : 0);
    if (width == 4)
        gather<real, 4>(source, own, batch, features, 1, out);
    else
        gather<real, 1>(source, own, batch, features, 1, out);
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

// `words` of 4 bytes of an array, or `row_words` of each of some rows, as in kernels.py
struct Copied {
    const unsigned* source;
    const int64* rows;
    unsigned* out;
    int64 words, row_words;
};

// out = source, or out = source[rows], for the copies of a table, one for each row of the grid
extern "C" __global__ void copy_words(const u8* table)
{
    Copied copied = ((const Copied*)table)[blockIdx.y];
    for (int64 i = global_x(); i < copied.words; i += threads_x()) {
        int64 from = i;
        if (copied.rows != 0) {
            int64 row = i / copied.row_words;
            from += (copied.rows[row] - row) * copied.row_words;
        }
        copied.out[i] = copied.source[from];
    }
}

// an array of float (kind 0), double (1) or bool (2), as in kernels.py
struct Summed {
    const u8* values;
    int64 size, kind;
};

// sums[x] = the sum of array x of a table, for each column of the grid. The order of additions is fixed, as in
// sum_column. `partials` has a number for each block.
extern "C" __global__ void totals(const u8* table, double* partials, unsigned* arrived, double* sums)
{
    __shared__ double of_threads[TOTAL_THREADS];
    Summed summed = ((const Summed*)table)[blockIdx.x];
    double sum = 0;
#pragma unroll 4
    for (int64 i = global_y() * TOTAL_THREADS + threadIdx.x; i < summed.size; i += threads_y() * TOTAL_THREADS)
        sum += summed.kind == 0   ? ((const float*)summed.values)[i]
               : summed.kind == 1 ? ((const double*)summed.values)[i]
                                  : summed.values[i];
    of_threads[threadIdx.x] = sum;
    for (unsigned half = TOTAL_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
    }
    double* own = partials + (int64)blockIdx.x * gridDim.y;
    if (threadIdx.x == 0)
        own[blockIdx.y] = of_threads[0];
    if (!is_last_block(arrived) || threadIdx.x > 0)
        return;
    sum = 0;
#pragma unroll 8
    for (unsigned y = 0; y < gridDim.y; y++)
        sum += __ldcg(own + y);
    sums[blockIdx.x] = sum;
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

// Loss, correctness and error term, which overwrites the logits; `lanes` threads per sample, a power of two up to 32.
// The targets are (1 - smoothing) onehot(label) + smoothing / classes.
extern "C" __global__ void softmax_cross_entropy(real* logits, const int64* labels, int64 batch, int64 classes,
                                                 real smoothing, int lanes, const int64* position, real* losses,
                                                 bool* correct)
{
    int64 shift = position ? position[0] : 0, each = blockDim.x / lanes;
    int lane = threadIdx.x % lanes;
    for (int64 first = blockIdx.x * each; first < batch; first += gridDim.x * each) {  // the same for a whole warp
        int64 i = first + threadIdx.x / lanes, best = lane < classes ? lane : 0;
        bool inside = i < batch;
        int64 end = inside ? classes : 0, label = inside ? labels[shift + i] : 0;
        real* s = logits + i * classes;
        real largest = inside ? s[best] : 0;
        for (int64 j = lane + lanes; j < end; j += lanes)
            if (s[j] > largest) {
                best = j;
                largest = s[j];
            }
        for (int mask = lanes / 2; mask > 0; mask /= 2) {  // of several equal logits, the first is the prediction
            real other = __shfl_xor_sync(0xffffffff, largest, mask);
            int64 index = __shfl_xor_sync(0xffffffff, best, mask);
            if (other > largest || (other == largest && index < best)) {
                best = index;
                largest = other;
            }
        }
        real total = 0, of_label = 0, of_all = 0;
        for (int64 j = lane; j < end; j += lanes) {
            real logit = s[j] - largest;
            of_label += j == label ? logit : 0;
            of_all += logit;
            s[j] = exp(logit);
            total += s[j];
        }
        total = sum_over_lanes(total, lanes);
        real expected = sum_over_lanes(of_label, lanes);
        if (smoothing != (real)0)
            expected = expected * (1 - smoothing) + sum_over_lanes(of_all, lanes) * (smoothing / (real)classes);
        real divisor = total * (real)batch;
        for (int64 j = lane; j < end; j += lanes) {
            real error = s[j] / divisor;
            if (j == label)
                error -= (1 - smoothing) / (real)batch;
            if (smoothing != (real)0)
                error -= smoothing / ((real)classes * (real)batch);
            s[j] = error;
        }
        if (inside && lane == 0) {
            losses[shift + i] = log(total) - expected;
            correct[shift + i] = best == label;
        }
    }
}

// The losses of outputs that are independent of each other, numbered as in kernels.py; their classes in losses.py have
// the formulas. The sum over outputs is the loss of a sample, and the error term overwrites the outputs. `lanes` threads
// per sample, a power of two up to 32. Scores are written to `right` (LOGISTIC) or to `differences`.
#define LOGISTIC 1
#define SQUARED 2
#define POISSON 3
extern "C" __global__ void independent_outputs(real* outputs, const real* targets, int64 batch, int64 count, int loss,
                                               real smoothing, int lanes, const int64* position, real* losses,
                                               bool* right, real* differences)
{
    int64 shift = position ? position[0] : 0, each = blockDim.x / lanes;
    int lane = threadIdx.x % lanes;
    for (int64 first = blockIdx.x * each; first < batch; first += gridDim.x * each) {  // the same for a whole warp
        int64 i = first + threadIdx.x / lanes;
        real sum = 0;
        for (int64 j = lane; j < count && i < batch; j += lanes) {
            int64 place = (shift + i) * count + j;
            real s = outputs[i * count + j], y = targets[place], difference;
            if (loss == LOGISTIC) {
                right[place] = (s > 0) == (y > (real)0.5);
                y = y * (1 - smoothing) + smoothing / 2;
                real small = exp(-fabs(s));  // cannot overflow
                sum += (s > 0 ? s : 0) + log1p(small) - y * s;
                difference = (s > 0 ? 1 : small) / (1 + small) - y;
            } else if (loss == SQUARED) {
                difference = s - y;
                sum += difference * difference / 2;
            } else {
                real mean = exp(s);
                difference = mean - y;
                sum += (log(y > 0 ? y : 1) - s - 1) * y + mean;
            }
            if (differences)
                differences[place] = difference;
            outputs[i * count + j] = difference * (1 / (real)batch);
        }
        sum = sum_over_lanes(sum, lanes);
        if (i < batch && lane == 0)
            losses[shift + i] = sum;
    }
}

// The gradient of parameter i plus that of the penalty, for weights only; stored, as in the reference.
__device__ real penalised(real* gradient, const real* parameters, int64 i, int64 weights_start, int64 weights_stop,
                          real l2, real l1)
{
    real g = gradient[i];
    if (i < weights_start || i >= weights_stop || (l2 == (real)0 && l1 == (real)0))
        return g;
    real w = parameters[i];
    g += w * l2;
    g += l1 * (real)((w > (real)0) - (w < (real)0));
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

// A step of SGD. With the rule ACCUMULATED, `velocity` is v = momentum v + g for the weights already, and `gradient` has
// the gradients of the biases only.
extern "C" __global__ void sgd_step(real* parameters, real* gradient, real* velocity, int64 size, int64 weights_start,
                                    int64 weights_stop, real l2, real l1, int rule, real momentum, real step_size,
                                    const real* factors, int count, int64 slot, const int64* position)
{
    if (position)
        step_size = factors_of(factors, count, slot, position)[0];
    for (int64 i = global_x(); i < size; i += threads_x()) {
        if (rule == ACCUMULATED && i >= weights_start && i < weights_stop) {
            real v = penalised(velocity, parameters, i, weights_start, weights_stop, l2, l1);
            parameters[i] -= v * step_size;
            continue;
        }
        real g = penalised(gradient, parameters, i, weights_start, weights_stop, l2, l1);
        real direction = g;
        if (rule != PLAIN) {
            real v = velocity[i] * momentum + g;
            velocity[i] = v;
            direction = rule == NESTEROV ? v * momentum + g : v;
        }
        parameters[i] -= direction * step_size;
    }
}

// A step of Adam or AdamW
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
