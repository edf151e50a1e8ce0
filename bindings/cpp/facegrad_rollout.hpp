/* The face loss on images that the model makes from noise: a deterministic sampler steps down to a random noise level without a
 * gradient. There the model makes one prediction with a gradient, and its x0 is decoded and compared. Needs facegrad.hpp alone.
 *
 *     auto rollout = facegrad::Rollout::make(context, loss, options);   // a loss that was made from Rollout::config()
 *     if (rollout.due(number)) {
 *         x.fill_with_noise();
 *         auto report = rollout(predict, x.view, step, targets, gradient.view);   // then backward from `gradient`
 *     }
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef FACEGRAD_ROLLOUT_HPP
#define FACEGRAD_ROLLOUT_HPP

#include <algorithm>
#include <cmath>

#include "facegrad.hpp"

namespace facegrad {

/// Options of rollouts. λ, `gradient_limit` and `target_similarity` are keys of the loss; Rollout::config gives their defaults.
struct RolloutOptions {
    /// How many steps of equal length the sampler has from t = 1 to 0.
    int steps = 8;
    /// The range, within (0, 1], of the noise level at which to stop.
    double low = 0.125, high = 0.5;
    /// Only steps whose number is a multiple of `every_n_steps` have a rollout. `start` is the first step with one. Over `ramp`
    /// steps from there on, λ grows from 0 to its value.
    std::uint64_t every_n_steps = 4, start = 0, ramp = 20;
    /// The seed of the noise levels. Give the same to all processes.
    std::uint64_t seed = 0;
    /// The least detection score of a face that has a gradient, in [0, 1].
    float min_score = 0.6f;
    /// Below this share of the last samples (about forty) that show a face, there is no gradient; 0: no pause.
    float min_found = 0.95f;
    /// The factor of λ, in [0, 1], by every such pause. λ then grows anew over `ramp` steps. 0: the first pause ends the rollouts.
    float backoff = 0.0f;
    /// Accepts a loss without `gradient_limit`, whose gradient can then be of any size relative to the main loss's.
    bool unbounded = false;
    /// The object `prediction` of the loss's configuration.
    std::string prediction = "{}";
    /// Turns a noise level in [0, 1] into the host's time; empty: the level itself, as for flow matching.
    std::function<double(double)> time;
};

/// What one rollout did and what it cost.
struct RolloutReport {
    /// The face loss's own report. Its result.loss is the weighted loss whose gradient is in `gradient`.
    Report face;
    /// The noise level of the prediction with a gradient, and the factor of λ by `start`, `ramp` and earlier pauses.
    double level = 0, ramp = 0;
    /// How many predictions of the whole batch were made without and with a gradient.
    std::size_t without_gradient = 0, with_gradient = 0;
    /// How many samples had a detection score below `min_score`.
    std::size_t low_score = 0;
    /// The share of the last samples (about forty) that show a face, and whether it was below `min_found`, so that there was no gradient.
    double found = 1;
    bool paused = false;
};

/// Samples from noise down to a random noise level, and computes the gradient of the face loss there.
class Rollout {
  public:
    /// A loss's configuration with the guard's defaults for the keys that `json`, an object, leaves out: `gradient_limit` 0.25 and
    /// `target_similarity` 0.8. Text that is no JSON object is returned as it is, and facegrad_loss_new refuses it.
    static std::string config(std::string json = "{}") {
        const auto open = json.find('{');
        const char *const defaults[][2] = {{"\"gradient_limit\"", "0.25"}, {"\"target_similarity\"", "0.8"}};
        for (const auto &[key, value] : defaults) {
            if (open != std::string::npos && json.find(key) == std::string::npos) {
                const auto next = json.find_first_not_of(" \t\r\n", open + 1);
                const bool alone = next != std::string::npos && json[next] == '}';
                json.insert(open + 1, std::string(key) + ": " + value + (alone ? "" : ", "));
            }
        }
        return json;
    }
    /// `loss` must find the faces itself: with `landmarks` "detect", and a detector whose threshold is at most `min_score`. It must
    /// have a `gradient_limit`, as a loss made from config() has, unless the options say `unbounded`. With a `gradient_limit`, every
    /// step needs `gradient_norm`.
    static Outcome<Rollout> make(const Context &context, Loss &loss, RolloutOptions options = {}) {
        const auto &o = options;
        if (!(o.low > 0 && o.low <= o.high && o.high <= 1)) {
            return detail::fail<Rollout>(FACEGRAD_ERR_ARGUMENT, "rollout: expected noise levels with 0 < low <= high <= 1, got " +
                                                                    std::to_string(o.low) + " and " + std::to_string(o.high));
        }
        if (o.steps < 1 || o.every_n_steps < 1) {
            return detail::fail<Rollout>(FACEGRAD_ERR_ARGUMENT, "rollout: expected steps and every_n_steps of at least 1");
        }
        if (!(o.backoff >= 0 && o.backoff <= 1)) {
            return detail::fail<Rollout>(FACEGRAD_ERR_ARGUMENT,
                                         "rollout: expected a backoff from 0 to 1, got " + std::to_string(o.backoff));
        }
        const std::string settings = loss.info(), key = "\"gradient_limit\":";
        const auto found = settings.find(key);
        const bool bounded = found != std::string::npos && settings.compare(found + key.size(), 4, "null") != 0;
        if (!bounded && !o.unbounded) {
            return detail::fail<Rollout>(FACEGRAD_ERR_ARGUMENT,
                                         "rollout: the loss has no gradient_limit: its gradient may outgrow the main loss's; make the loss "
                                         "from Rollout::config(…), which gives 0.25, or set unbounded in the options");
        }
        return Rollout(context, loss, std::move(options));
    }
    /// Whether the step with this number has a rollout.
    bool due(std::uint64_t number) const {
        return (strength_ > 0 || number < since_) && number >= options_.start && number % options_.every_n_steps == 0;
    }
    /// Makes one rollout. `predict(times, with_gradient)` computes the model's prediction for `x` at the host's times, one per
    /// sample, and writes it to `step.prediction`. Only its last call has a gradient.
    ///
    /// `x` holds noise of unit variance and is overwritten. Of `step`, the prediction, the latent's size, `number` and
    /// `gradient_norm` are used. `targets` must not set `sample_weights`, which the rollout uses. `gradient` receives the gradient
    /// with respect to the last prediction.
    template <class Predict>
    Outcome<RolloutReport> operator()(Predict &&predict, const TensorView &x, Step step, Targets targets, const TensorView &gradient,
                                      void *stream = nullptr) {
        if (targets.sample_weights) {
            return detail::fail<RolloutReport>(FACEGRAD_ERR_ARGUMENT, "rollout: sample_weights are set by the rollout; leave them out");
        }
        const std::size_t count = x.batch();
        RolloutReport report;
        report.level = level(step.number);
        const double grown = static_cast<double>(step.number) - static_cast<double>(std::max(options_.start, since_)) + 1;
        report.ramp = strength_ * std::clamp(grown / (static_cast<double>(options_.ramp) + 1), 0.0, 1.0);
        std::vector<double> here(count, time(1.0)), after(count);
        const auto shape = std::vector<std::int64_t>{static_cast<std::int64_t>(count)};
        for (int k = 0; at(k) > report.level + 1e-9; ++k, here.swap(after)) {
            predict(static_cast<const std::vector<double> &>(here), false);
            ++report.without_gradient;
            after.assign(count, time(std::max(at(k + 1), report.level)));
            const TensorView from(here.data(), float64, shape), to(after.data(), float64, shape);
            const facegrad_tensor xs = x.raw(), ps = step.prediction.raw(), froms = from.raw(), tos = to.raw();
            const auto status = api().sampler_step(context_->get(), &xs, &ps, &froms, &tos, options_.prediction.c_str(), &xs, stream);
            if (status != FACEGRAD_OK) {
                return detail::fail<RolloutReport>(status, detail::text(api().last_error));
            }
        }
        here.assign(count, time(report.level));
        predict(static_cast<const std::vector<double> &>(here), true);
        report.with_gradient = 1;
        step.x_t = x;
        step.times = TensorView(here.data(), float64, shape);
        std::vector<float> weights(count, static_cast<float>(report.ramp));
        targets.sample_weights = TensorView(weights.data(), shape);
        auto first = loss_->step(step, targets, &gradient, stream);
        if (auto error = failed(first)) {
            return detail::fail<RolloutReport>(error->status(), error->what());
        }
        report.face = taken(std::move(first));
        std::size_t looked = 0, seen = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const auto &sample = report.face.samples[i];
            looked += sample.outcome == FACEGRAD_SAMPLE_COUNTED || sample.outcome == FACEGRAD_SAMPLE_NO_FACE;
            seen += sample.outcome == FACEGRAD_SAMPLE_COUNTED && !(sample.score < options_.min_score);
            if (sample.outcome == FACEGRAD_SAMPLE_COUNTED && sample.score < options_.min_score) {
                weights[i] = 0;
                ++report.low_score;
            }
        }
        if (looked > 0) {
            const double fresh = std::min(1.0, static_cast<double>(looked) / 40);
            found_ = (1 - fresh) * found_ + fresh * static_cast<double>(seen) / static_cast<double>(looked);
        }
        report.found = found_;
        report.paused = found_ < options_.min_found - 1e-6;
        if (report.paused) {
            strength_ *= paused_ ? 1 : static_cast<double>(options_.backoff);
            since_ = step.number + 1;
            std::fill(weights.begin(), weights.end(), 0.0f);
            report.ramp = 0;
        }
        paused_ = report.paused;
        if (report.low_score > 0 || report.paused) {
            auto second = loss_->step(step, targets, &gradient, stream);
            if (auto error = failed(second)) {
                return detail::fail<RolloutReport>(error->status(), error->what());
            }
            report.face = taken(std::move(second));
        }
        return report;
    }

  private:
    Rollout(const Context &context, Loss &loss, RolloutOptions options) : context_(&context), loss_(&loss), options_(std::move(options)) {}
    /// The k-th level of the grid.
    double at(int k) const { return k >= options_.steps ? 0.0 : 1.0 - static_cast<double>(k) / options_.steps; }
    double time(double level) const { return options_.time ? options_.time(level) : level; }
    /// The level at which to stop (splitmix64 of seed and step).
    double level(std::uint64_t number) const {
        std::uint64_t z = options_.seed * 1000003u + number + 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        return options_.low + (options_.high - options_.low) * (static_cast<double>(z >> 11) / 9007199254740992.0);
    }
    static std::optional<Error> failed(const Report &) { return std::nullopt; }
    static std::optional<Error> failed(const Result<Report> &result) {
        return result ? std::nullopt : std::optional<Error>(result.error());
    }
    static Report taken(Report &&report) { return std::move(report); }
    static Report taken(Result<Report> &&result) { return std::move(result).value(); }

    const Context *context_;
    Loss *loss_;
    RolloutOptions options_;
    double found_ = 1, strength_ = 1;
    bool paused_ = false;
    std::uint64_t since_ = 0;
};

} // namespace facegrad

#endif /* FACEGRAD_ROLLOUT_HPP */
