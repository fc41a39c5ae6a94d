#include "layout/arena.hpp"

#include <atomic>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace diba {
namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;  // a large page
constexpr std::size_t kRegion = 4 * kPage;
constexpr std::size_t kLine = 64;

class Region {
 public:
  explicit Region(std::size_t bytes)
      : align_{bytes >= kPage ? kPage : kLine}, data_(static_cast<std::uint8_t*>(::operator new(bytes, align_))) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kPage) madvise(data_, bytes / kPage * kPage, MADV_HUGEPAGE);  // may be refused
#endif
  }
  ~Region() { ::operator delete(data_, align_); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  std::uint8_t* data() const { return data_; }

 private:
  std::align_val_t align_;
  std::uint8_t* data_;
};

std::shared_ptr<std::uint8_t> part_of(const std::shared_ptr<Region>& region, std::size_t first) {
  return {region, region->data() + first};
}

// The region that is being filled. A thread that finds another at it takes memory of its own: it could wait for ever in
// a child of fork.
struct Filling {
  std::atomic<bool> taken{false};
  std::weak_ptr<Region> region;
  std::size_t used = 0;
} filling;

std::shared_ptr<std::uint8_t> take(std::size_t bytes) {
  const std::size_t size = (bytes + kLine - 1) / kLine * kLine;
  if (size > kRegion / 4 || filling.taken.exchange(true, std::memory_order_acquire))
    return part_of(std::make_shared<Region>(bytes), 0);
  struct Leave {
    ~Leave() { filling.taken.store(false, std::memory_order_release); }
  } const leave;
  std::shared_ptr<Region> region = filling.region.lock();
  if (region == nullptr || filling.used + size > kRegion) {
    region = std::make_shared<Region>(kRegion);
    filling.region = region;
    filling.used = 0;
  }
  return part_of(region, std::exchange(filling.used, filling.used + size));
}

}  // namespace

Arena::Arena(std::size_t bytes) : bytes_(bytes), memory_(take(bytes)) {}

}  // namespace diba
