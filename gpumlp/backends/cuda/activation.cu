// The kernels of an activation; preceded by rules.cuh and activation.cuh.

// s = h(s + bias), in place
extern "C" __global__ void bias_activation(real* s, const real* bias, int64 batch, int64 units)
{
    for (int64 i = global_y(); i < batch; i += threads_y())
        for (int64 j = global_x(); j < units; j += threads_x())
            s[i * units + j] = activate(s[i * units + j] + bias[j]);
}

// s = s + bias, a = h(s)
extern "C" __global__ void bias_activation_apart(real* s, const real* bias, int64 batch, int64 units, real* a)
{
    for (int64 i = global_y(); i < batch; i += threads_y())
        for (int64 j = global_x(); j < units; j += threads_x()) {
            real sum = s[i * units + j] + bias[j];
            s[i * units + j] = sum;
            a[i * units + j] = activate(sum);
        }
}

// delta = delta * h', with h' from a = h(s) or from s
extern "C" __global__ void activation_backward(real* delta, const real* saved, int64 size)
{
    for (int64 i = global_x(); i < size; i += threads_x())
        delta[i] *= derivative(saved[i]);
}
