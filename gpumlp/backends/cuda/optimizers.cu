// Updates of the parameters.

// The variants of SGD, numbered as in kernels.py.
#define PLAIN 0
#define MOMENTUM 1
#define NESTEROV 2
#define ACCUMULATED 3  // momentum, with the velocities of the weights written by matrix products

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
