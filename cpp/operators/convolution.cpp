// diba::Conv and diba::BitConv: every patch of the input is a vector that the matrix multiplies.

#include <algorithm>
#include <string>

#include "layout/aligned.hpp"
#include "operators/bit_weights.hpp"
#include "operators/matrix.hpp"
#include "operators/numbers.hpp"
#include "operators/operators.hpp"

namespace diba::ops {
namespace {

constexpr std::size_t kTogether = 256;  // patches of one piece of work: some MiB with those around them
constexpr std::size_t kSide = 16;       // of the squares in which matrices are transposed

// y (cols, rows) of x (rows, cols); a row of x begins x_stride after the last, and of y y_stride.
void transpose(const float* x, std::size_t rows, std::size_t cols, std::size_t x_stride, float* y,
               std::size_t y_stride) {
  for (std::size_t i = 0; i < rows; i += kSide)
    for (std::size_t j = 0; j < cols; j += kSide)
      for (std::size_t a = i; a < std::min(i + kSide, rows); ++a)
        for (std::size_t b = j; b < std::min(j + kSide, cols); ++b) y[b * y_stride + a] = x[a * x_stride + b];
}

struct Axis {
  std::int64_t kernel, stride, before, after, dilation;

  std::int64_t positions(std::int64_t pixels) const {
    const std::int64_t room = pixels + before + after - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  }
  // The same of a named number of pixels.
  std::string positions(const std::string& pixels) const {
    return "(" + pixels + " + " + std::to_string(before + after - dilation * (kernel - 1) - 1) + ") // " +
           std::to_string(stride) + " + 1";
  }
  bool simple() const { return kernel == 1 && stride == 1 && before == 0 && after == 0; }
};

// One image as two axes of pixels: the first has one pixel where the convolution has one axis.
struct Image {
  const float* data;
  std::size_t channels;
  std::int64_t height, width;
};

// M: what multiplies, Matrix or BitWeights.
template <class M>
class Convolution : public Kernel {
 public:
  explicit Convolution(const Node& node) : matrix_(node) {
    const Shape kernel = node.integers("kernel_shape"), strides = node.integers("strides");
    const Shape pads = node.integers("pads"), dilations = node.integers("dilations");
    axes_ = kernel.size();
    if (axes_ != 1 && axes_ != 2)
      throw Error("kernel_shape has " + std::to_string(axes_) + " entries; it must have 1 or 2");
    if (strides.size() != axes_ || dilations.size() != axes_ || pads.size() != 2 * axes_)
      throw Error("strides, dilations and pads must have one, one and two entries for each of kernel_shape");
    for (std::size_t a = 0; a < axes_; ++a) {
      if (kernel[a] < 1 || strides[a] < 1 || dilations[a] < 1 || pads[a] < 0 || pads[a + axes_] < 0)
        throw Error("kernel_shape, strides and dilations must be at least 1, pads at least 0");
      axis_[a + 2 - axes_] = {kernel[a], strides[a], pads[a], pads[a + axes_], dilations[a]};
    }
    const auto pixels = static_cast<std::size_t>(axis_[0].kernel * axis_[1].kernel);
    if (matrix_.cols() % pixels != 0) {
      throw Error("the matrix has " + std::to_string(matrix_.cols()) + " columns; they must be a multiple of the " +
                  std::to_string(pixels) + " pixels of the kernel");
    }
    channels_ = matrix_.cols() / pixels;
    if (node.integer("out_channels") != static_cast<std::int64_t>(matrix_.rows())) {
      throw Error("out_channels is " + std::to_string(node.integer("out_channels")) + "; it must be " +
                  std::to_string(matrix_.rows()) + ", the rows of the matrix");
    }
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    if (x.shape.size() != axes_ + 2 || x.shape[1] != static_cast<std::int64_t>(channels_)) {
      throw Error("X has shape " + shown(x.shape) + "; it must have " + std::to_string(axes_ + 2) +
                  " dimensions, the second of size " + std::to_string(channels_));
    }
    const std::int64_t height = axes_ == 2 ? x.shape[2] : 1, width = x.shape.back();
    const std::int64_t down = axis_[0].positions(height), across = axis_[1].positions(width);
    Shape shape = {x.shape[0], static_cast<std::int64_t>(matrix_.rows()), down, across};
    if (axes_ == 1) shape.erase(shape.begin() + 2);
    void* output = call.output(0, shape);
    const auto images = static_cast<std::size_t>(x.shape[0]), places = static_cast<std::size_t>(down * across);
    const std::size_t size = channels_ * static_cast<std::size_t>(height * width), m = matrix_.rows();
    if (images * places == 0) return;
    const bool plain = x.type == kFloat;
    const Aligned<float> scratch(plain ? 0 : images * (size + m * places));
    const float* from = static_cast<const float*>(x.data);
    float* to = static_cast<float*>(output);
    if (!plain) {
      to_float32(static_cast<const std::uint16_t*>(x.data), images * size, x.type, scratch.data());
      from = scratch.data();
      to = scratch.data() + images * size;
    }
    const std::size_t pieces = (places + kTogether - 1) / kTogether;
    const auto piece = [&](std::size_t p) {
      const std::size_t image = p / pieces, first = p % pieces * kTogether;
      const Image source{from + image * size, channels_, height, width};
      multiply(source, across, first, std::min(kTogether, places - first), places, to + image * m * places);
    };
    const Stage stage{images * pieces, piece};
    call.executor().run(&stage, 1);
    if (!plain) from_float32(to, images * m * places, x.type, static_cast<std::uint16_t*>(output));
  }

 private:
  // Positions [first, first + count) of one image; y (m, places).
  void multiply(const Image& image, std::int64_t across, std::size_t first, std::size_t count, std::size_t places,
                float* y) const {
    const std::size_t n = matrix_.cols(), m = matrix_.rows();
    const Aligned<float> scratch(count * (n + m));
    float* patches = scratch.data();
    float* results = patches + count * n;
    if (axis_[0].simple() && axis_[1].simple()) {
      transpose(image.data + first, n, count, places, patches, n);
    } else {
      for (std::size_t i = 0; i < count; ++i) {
        const auto place = static_cast<std::int64_t>(first + i);
        take_patch(image, place / across, place % across, patches + i * n);
      }
    }
    matrix_.multiply(patches, count, results, 1);
    transpose(results, count, m, m, y + first, places);
  }

  // What the kernel sees at one position, channel after channel; zeros beyond the image.
  void take_patch(const Image& image, std::int64_t row, std::int64_t column, float* patch) const {
    const Axis &down = axis_[0], &across = axis_[1];
    const std::int64_t top = row * down.stride - down.before, left = column * across.stride - across.before;
    const auto pixels = static_cast<std::size_t>(image.height * image.width);
    for (std::size_t c = 0; c < image.channels; ++c) {
      const float* channel = image.data + c * pixels;
      for (std::int64_t i = 0; i < down.kernel; ++i) {
        const std::int64_t h = top + i * down.dilation;
        for (std::int64_t j = 0; j < across.kernel; ++j) {
          const std::int64_t w = left + j * across.dilation;
          const bool inside = h >= 0 && h < image.height && w >= 0 && w < image.width;
          *patch++ = inside ? channel[h * image.width + w] : 0.0F;
        }
      }
    }
  }

  M matrix_;
  std::size_t axes_, channels_;
  Axis axis_[2] = {{1, 1, 0, 0, 1}, {1, 1, 0, 0, 1}};
};

void infer(const Inference& inference) {
  ElementType type;
  const Dimensions x = inference.input(0, &type);
  const Shape channels = inference.integers("out_channels"), kernel = inference.integers("kernel_shape");
  const Shape strides = inference.integers("strides"), pads = inference.integers("pads");
  const Shape dilations = inference.integers("dilations");
  const std::size_t axes = kernel.size();
  const bool known = channels.size() == 1 && strides.size() == axes && pads.size() == 2 * axes &&
                     dilations.size() == axes && x.size() == axes + 2;
  if (!known) return;
  Dimensions y = {x[0], {channels[0], ""}};
  for (std::size_t a = 0; a < axes; ++a) {
    const auto& [pixels, name] = x[a + 2];
    const Axis axis{kernel[a], strides[a], pads[a], pads[a + axes], dilations[a]};
    if (pixels >= 0) {
      y.push_back({axis.positions(pixels), ""});
    } else {
      y.push_back({-1, axis.simple() || name.empty() ? name : axis.positions(name)});
    }
  }
  inference.set_output(0, y, type);
}

}  // namespace

Definition convolution(ElementType activations) {
  return {"Conv",
          {{activations, kRequired}, {kUint8, kRequired}, {kFloat, kOptional}},
          {{activations, kRequired}},
          [](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Convolution<Matrix>>(node); },
          infer};
}

Definition bit_convolution(ElementType activations) {
  return {"BitConv",
          {{activations, kRequired}, {kUint8, kRequired}, {kFloat, kRequired}, {kFloat, kOptional}},
          {{activations, kRequired}},
          [](const Node& node) -> std::unique_ptr<Kernel> { return std::make_unique<Convolution<BitWeights>>(node); },
          infer};
}

}  // namespace diba::ops
