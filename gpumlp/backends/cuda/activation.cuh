// An activation: kernels.py defines FORWARD and DERIVATIVE, the expressions of its class (nn/activations.py).

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
