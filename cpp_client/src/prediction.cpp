#include "nin/prediction.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nin/error.h"
#include "outputs.h"

namespace nin {
namespace {

std::vector<Prediction> top_of_one(std::span<const float> probabilities,
                                   const std::vector<std::string>& labels, std::size_t k) {
  std::vector<std::size_t> order(probabilities.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(k);
  std::partial_sort(order.begin(), end, order.end(), [&](std::size_t a, std::size_t b) {
    return probabilities[a] != probabilities[b] ? probabilities[a] > probabilities[b] : a < b;
  });
  std::vector<Prediction> best;
  best.reserve(k);
  for (auto index = order.begin(); index != end; ++index) {
    best.push_back({*index, labels[*index], probabilities[*index]});
  }
  return best;
}

void check_finite(std::span<const float> values, std::size_t classes, const char* name) {
  const auto odd = std::ranges::find_if(values, [](float value) { return !std::isfinite(value); });
  if (odd == values.end()) return;
  const auto image = static_cast<std::size_t>(odd - values.begin()) / classes;
  throw Error("the " + std::string(name) + " of image " + std::to_string(image) + " of " +
              std::to_string(values.size() / classes) + " hold " + std::to_string(*odd) +
              ", expected finite numbers; the model or its input is damaged");
}

}  // namespace

void check_finite(const Outputs& outputs, std::size_t classes) {
  check_finite(outputs.logits, classes, "logits");
  check_finite(outputs.probabilities, classes, "probabilities");
}

std::vector<float> softmax(std::span<const float> logits, std::size_t classes) {
  std::vector<float> probabilities;
  probabilities.reserve(logits.size());
  for (std::size_t start = 0; start < logits.size(); start += classes) {
    const auto row = logits.subspan(start, classes);
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const float logit : row) sum += std::exp(logit - largest);
    for (const float logit : row) {
      probabilities.push_back(static_cast<float>(std::exp(logit - largest) / sum));
    }
  }
  return probabilities;
}

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
  check_finite(probabilities, classes, "probabilities");  // NaN has no order
  std::vector<std::vector<Prediction>> all;
  all.reserve(probabilities.size() / classes);
  for (std::size_t start = 0; start < probabilities.size(); start += classes) {
    all.push_back(top_of_one(probabilities.subspan(start, classes), labels, k));
  }
  return all;
}

}  // namespace nin
