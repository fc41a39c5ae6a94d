// A callable, referred to.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace diba {

template <class Signature>
class FunctionRef;

// Two pointers; owns nothing, allocates nothing. Only a named callable can be referred to: a temporary would be gone
// before the call.
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <class F, std::enable_if_t<!std::is_same_v<std::remove_const_t<F>, FunctionRef> &&
                                          std::is_invocable_r_v<Result, F&, Arguments...>,
                                      int> = 0>
  FunctionRef(F& f) noexcept  // NOLINT(google-explicit-constructor): it stands for f
      : callable_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))), call_([](void* c, Arguments... a) {
          return static_cast<Result>((*static_cast<F*>(c))(std::forward<Arguments>(a)...));
        }) {
    static_assert(std::is_object_v<F>, "pass a lambda that calls the function");
  }

  Result operator()(Arguments... a) const { return call_(callable_, std::forward<Arguments>(a)...); }

 private:
  void* callable_;
  Result (*call_)(void*, Arguments...);
};

}  // namespace diba
