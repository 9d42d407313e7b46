// The kernels of one activation, compiled for each. kernels.py defines FORWARD and DERIVATIVE, the expressions of its class
// (nn/activations.py).

// h(s)
__device__ real activate(real s)
{
    return (real)(FORWARD);
}

// h'(s) from a = h(s), or from s: the expression contains one of the two
__device__ real derivative(real saved)
{
    const real a = saved, s = saved;
    (void)a;
    (void)s;
    return (real)(DERIVATIVE);
}

// s = s + bias, a = h(s), WIDTH columns at a time; `a` may be `s`
template <int WIDTH>
__device__ void add_bias(real* s, const real* bias, int64 batch, int64 units, bool stored, real* a)
{
    typedef Pack<real, WIDTH> Values;
    int64 count = units / WIDTH;
    for (int64 j = global_x(); j < count; j += threads_x()) {
        Values b = ((const Values*)bias)[j];
        for (int64 i = global_y(); i < batch; i += threads_y()) {
            Values sum = ((const Values*)s)[i * count + j], h;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                sum.at[k] += b.at[k];
                h.at[k] = activate(sum.at[k]);
            }
            if (stored)
                ((Values*)s)[i * count + j] = sum;
            ((Values*)a)[i * count + j] = h;
        }
    }
}

// s = h(s + bias), in place
extern "C" __global__ void bias_activation(real* s, const real* bias, int64 batch, int64 units, int width)
{
    if (width == 4)
        add_bias<4>(s, bias, batch, units, false, s);
    else
        add_bias<1>(s, bias, batch, units, false, s);
}

// s = s + bias, a = h(s)
extern "C" __global__ void bias_activation_apart(real* s, const real* bias, int64 batch, int64 units, int width,
                                                 real* a)
{
    if (width == 4)
        add_bias<4>(s, bias, batch, units, true, a);
    else
        add_bias<1>(s, bias, batch, units, true, a);
}

// delta = delta * h', with h' from a = h(s) or from s, and sums[j] = sum over i of delta[i, j],
// unless `sums` is null
extern "C" __global__ __launch_bounds__(SUM_COLUMNS * SUM_ROWS) void activation_backward(
    real* delta, const real* saved, int64 batch, int64 units, real* partials, unsigned* arrived, real* sums)
{
    int64 column = global_x();
    real sum = 0;
    if (column < units) {
        int64 each = threads_y();
        for (int64 first = global_y(); first < batch; first += AT_ONCE * each) {
            real errors[AT_ONCE], read[AT_ONCE];
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                int64 i = min(first + r * each, batch - 1) * units + column;
                errors[r] = delta[i];
                read[r] = saved[i];
            }
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++)
                if (first + r * each < batch) {
                    errors[r] *= derivative(read[r]);
                    sum += errors[r];
                    delta[(first + r * each) * units + column] = errors[r];
                }
        }
    }
    if (sums)
        sum_column(sum, units, partials, arrived, sums);
}
