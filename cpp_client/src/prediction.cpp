#include "nin/prediction.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nin/error.h"

namespace nin {
namespace {

std::vector<Prediction> top_of_one(std::span<const float> probabilities,
                                   const std::vector<std::string>& labels, std::size_t k) {
  std::vector<std::size_t> order(probabilities.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto rank = [&](std::size_t i) {  // NaN, which has no order, comes last
    return std::isnan(probabilities[i]) ? -1.0F : probabilities[i];
  };
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(k);
  std::partial_sort(order.begin(), end, order.end(), [&](std::size_t a, std::size_t b) {
    return rank(a) != rank(b) ? rank(a) > rank(b) : a < b;
  });
  std::vector<Prediction> best;
  best.reserve(k);
  for (auto index = order.begin(); index != end; ++index) {
    best.push_back({*index, labels[*index], probabilities[*index]});
  }
  return best;
}

}  // namespace

void Outputs::append(const Outputs& more) {
  logits.insert(logits.end(), more.logits.begin(), more.logits.end());
  probabilities.insert(probabilities.end(), more.probabilities.begin(), more.probabilities.end());
}

std::vector<std::vector<Prediction>> top_predictions(std::span<const float> probabilities,
                                                     const std::vector<std::string>& labels,
                                                     std::size_t k) {
  const std::size_t classes = labels.size();
  if (k < 1 || k > classes) {
    throw Error("asked for the " + std::to_string(k) + " best classes; there are " +
                std::to_string(classes));
  }
  if (probabilities.size() % classes != 0) {
    throw Error(std::to_string(probabilities.size()) + " probabilities are no multiple of " +
                std::to_string(classes) + " classes");
  }
  std::vector<std::vector<Prediction>> all;
  all.reserve(probabilities.size() / classes);
  for (std::size_t start = 0; start < probabilities.size(); start += classes) {
    all.push_back(top_of_one(probabilities.subspan(start, classes), labels, k));
  }
  return all;
}

}  // namespace nin
