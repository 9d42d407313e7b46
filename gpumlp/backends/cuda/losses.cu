// Losses with their gradients.

// The sum of the values of `lanes` neighbouring threads, a power of two up to 32; each of them gets the same bits.
__device__ real sum_over_lanes(real value, int lanes)
{
    for (int mask = lanes / 2; mask > 0; mask /= 2)
        value += __shfl_xor_sync(0xffffffff, value, mask);
    return value;
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
