#include "metadata.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "nin/error.h"
#include "nin/files.h"

namespace {

using nlohmann::json;
using Texts = std::map<std::string, std::string>;

/// What an export of the classifier with two classes and one golden image carries.
Texts good() {
  const auto output = [](const char* name) {
    return json{{"name", name}, {"dtype", "float32"}, {"shape", {"batch", 2}}};
  };
  const json contract = {
      {"graph", "fashion_mnist"},
      {"input", {{"name", "pixels"}, {"dtype", "uint8"}, {"shape", {"batch", 28, 28}}}},
      {"outputs", {output("logits"), output("probabilities")}},
      {"max_batch", 64}};
  std::string pixels;  // 784 bytes: 261 times three zeros, and one more
  for (int i = 0; i < 261; ++i) pixels += "AAAA";
  const json golden = {{"pixels", pixels + "/w=="},
                       {"shape", {1, 28, 28}},
                       {"outputs", {{"logits", {{1.5, -1}}}, {"probabilities", {{0.9, 0.1}}}}},
                       {"budget", {{"logits", 1e-5}, {"probabilities", 1e-6}}}};
  return {{"contract", contract.dump()},
          {"labels", R"(["left", "right"])"},
          {"golden", golden.dump()},
          {"weights_sha256", "abc"}};
}

std::string error_of(const Texts& texts) {
  try {
    (void)nin::parse_metadata(texts);
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

/// The message for `good` with one place of one text replaced.
std::string error_with(const char* key, const char* pointer, const json& value) {
  Texts texts = good();
  json data = json::parse(texts.at(key));
  data[json::json_pointer(pointer)] = value;
  texts[key] = data.dump();
  return error_of(texts);
}

TEST(Metadata, IsRead) {
  const nin::Metadata metadata = nin::parse_metadata(good());
  EXPECT_EQ(metadata.graph.name, "fashion_mnist");
  EXPECT_EQ(metadata.labels, (std::vector<std::string>{"left", "right"}));
  EXPECT_EQ(metadata.weights_sha256, "abc");
  ASSERT_EQ(metadata.golden.pixels.size(), nin::image_pixels);
  EXPECT_EQ(metadata.golden.pixels.front(), 0);
  EXPECT_EQ(metadata.golden.pixels.back(), 255);
  EXPECT_EQ(metadata.golden.outputs.at("logits"), (std::vector<double>{1.5, -1}));
  EXPECT_EQ(metadata.golden.budget.at("probabilities"), 1e-6);
}

TEST(Metadata, EveryTextIsNeeded) {
  for (const char* key : nin::metadata_keys) {
    Texts texts = good();
    texts.erase(key);
    EXPECT_NE(error_of(texts).find(std::string("it carries no ") + key), std::string::npos);
    texts[key] = "";
    EXPECT_NE(error_of(texts).find(std::string("it carries no ") + key), std::string::npos);
  }
}

TEST(Metadata, AnotherContractIsRefused) {
  EXPECT_NE(error_with("contract", "/graph", "resnet").find("its graph is \"resnet\", known are"),
            std::string::npos);
  for (const char* place : {"/input/name", "/input/dtype", "/outputs/1/name", "/max_batch"}) {
    EXPECT_NE(error_with("contract", place, "other").find("its contract is"), std::string::npos);
  }
  EXPECT_NE(error_with("contract", "/input/shape/1", 32).find("expected"), std::string::npos);
  EXPECT_NE(error_with("labels", "/2", "middle").find("its contract is"), std::string::npos);
}

TEST(Metadata, DamagedGoldenVectorsAreRefused) {
  EXPECT_NE(error_with("golden", "/pixels", "AAAA").find("have 3 pixels, expected 784"),
            std::string::npos);
  EXPECT_NE(error_with("golden", "/pixels", "*").find("no base64"), std::string::npos);
  EXPECT_NE(error_with("golden", "/shape/0", 0).find("0 golden images"), std::string::npos);
  EXPECT_NE(error_with("golden", "/shape/0", 1'000'000'000).find("golden images"),
            std::string::npos);
  EXPECT_NE(error_with("golden", "/budget/logits", -1).find("budget"), std::string::npos);
  EXPECT_NE(error_with("golden", "/outputs/logits/0", json::array({1})).find("another length"),
            std::string::npos);
  EXPECT_NE(error_with("golden", "/outputs/logits", json::array()).find("0 values, expected 2"),
            std::string::npos);
}

TEST(Metadata, DeepJsonDoesNotExhaustTheStack) {
  for (const char* key : {"contract", "labels", "golden"}) {
    Texts texts = good();
    texts[key] = std::string(1'000'000, '[') + std::string(1'000'000, ']');
    EXPECT_EQ(error_of(texts), "its JSON is nested too deeply");
  }
}

TEST(Metadata, WhatIsNotJsonOrOfAnotherTypeIsRefused) {
  for (const char* key : {"contract", "labels", "golden"}) {
    for (const char* text : {"{", "nonsense", "[]", "{}", "1e999", "null", "[[[[[["}) {
      Texts texts = good();
      texts[key] = text;
      EXPECT_NE(error_of(texts), "") << key << " is " << text;
    }
  }
}

}  // namespace
