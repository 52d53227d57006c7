// CycleFC's shift in one pass, for a CPU: y[n, p, c] = x[n, p + d(c), c], zero outside the map, for channels-last maps.
// d(c) = (c + K / 2) % K - K / 2 along the height or the width. Its gradient is the shift by -d. See compiled.py.
#include <vector>

#include "paddle/extension.h"

template <typename T>
static void Shift(const T* x, T* y, const std::vector<int64_t>& shape, int64_t length, bool height, bool reverse) {
  const int64_t width = shape[2], channels = shape[3];
  const int64_t side = height ? shape[1] : width, stride = (height ? width : 1) * channels;
  const std::vector<T> zeros(channels, T(0));
  std::vector<int64_t> offset(length);
  for (int64_t k = 0; k < length; ++k) offset[k] = ((k + length / 2) % length - length / 2) * (reverse ? -1 : 1);
#pragma omp parallel for
  for (int64_t line = 0; line < shape[0] * shape[1]; ++line) {
    std::vector<const T*> from(length);
    for (int64_t column = 0; column < width; ++column) {
      const int64_t start = (line * width + column) * channels, place = height ? line % shape[1] : column;
      for (int64_t k = 0; k < length; ++k) {
        const int64_t read = place + offset[k];
        from[k] = read < 0 || read >= side ? zeros.data() : x + start + offset[k] * stride;
      }
      T* to = y + start;
      int64_t c = 0;
      if (length == 3) {  // the network's: constant strides are read and written several channels at a time
        const T *a = from[0], *b = from[1], *d = from[2];
        for (; c + 3 <= channels; c += 3) {
          to[c] = a[c];
          to[c + 1] = b[c + 1];
          to[c + 2] = d[c + 2];
        }
      }
      for (; c < channels; ++c) to[c] = from[c % length][c];
    }
  }
}

static std::vector<paddle::Tensor> Run(const paddle::Tensor& x, int64_t length, bool height, bool reverse) {
  auto y = paddle::empty(x.shape(), x.dtype(), x.place());
  PD_DISPATCH_FLOATING_TYPES(x.dtype(), "cyclemlp_cycle_shift", ([&] {
    Shift<data_t>(x.data<data_t>(), y.data<data_t>(), x.shape(), length, height, reverse);
  }));
  return {y};
}

static std::vector<paddle::Tensor> RunReversed(const paddle::Tensor& gradient, int64_t length, bool height,
                                               bool reverse) {
  return Run(gradient, length, height, !reverse);
}

#define ATTRIBUTES {"length: int64_t", "height: bool", "reverse: bool"}

PD_BUILD_OP(cyclemlp_cycle_shift)
    .Inputs({"X"})
    .Outputs({"Y"})
    .Attrs(ATTRIBUTES)
    .SetKernelFn(PD_KERNEL(Run));
PD_BUILD_GRAD_OP(cyclemlp_cycle_shift)
    .Inputs({paddle::Grad("Y")})
    .Outputs({paddle::Grad("X")})
    .Attrs(ATTRIBUTES)
    .SetKernelFn(PD_KERNEL(RunReversed));
PD_BUILD_DOUBLE_GRAD_OP(cyclemlp_cycle_shift)
    .Inputs({paddle::Grad(paddle::Grad("X"))})
    .Outputs({paddle::Grad(paddle::Grad("Y"))})
    .Attrs(ATTRIBUTES)
    .SetKernelFn(PD_KERNEL(Run));
