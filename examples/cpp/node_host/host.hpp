// A node graph in a JSON file: every node has a class, literals and references `@node` or `@node.output`. What a node
// needs runs before it, each node once.

#pragma once

#include <any>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

using Json = nlohmann::json;
using Outputs = std::map<std::string, std::any>;

class Host;

/// The inputs of the node that runs.
class Inputs {
  public:
    Inputs(Host &host, std::string node, const Json &json) : host_(host), node_(std::move(node)), json_(json) {}
    bool has(const std::string &name) const { return json_.contains(name) && !json_[name].is_null(); }
    /// A literal.
    template <class T> T value(const std::string &name) const {
        try {
            return json_.at(name).get<T>();
        } catch (const Json::exception &error) {
            throw std::runtime_error(node_ + "." + name + ": " + error.what());
        }
    }
    template <class T> T value(const std::string &name, T otherwise) const { return has(name) ? value<T>(name) : otherwise; }
    /// The literals of an object's configuration: everything but `class`.
    Json rest() const {
        Json rest = json_;
        rest.erase("class");
        return rest;
    }
    /// What another node made.
    template <class T> T &linked(const std::string &name) const;

  private:
    Host &host_;
    std::string node_;
    const Json &json_;
};

class Host {
  public:
    using Class = std::function<Outputs(const Inputs &)>;

    void add(const std::string &name, Class run) { classes_[name] = std::move(run); }

    /// Runs every node of a graph, what is needed first. `seen` is told each one that ran.
    void run(const Json &graph, const std::function<void(const std::string &node, const Outputs &)> &seen) {
        graph_ = graph;
        seen_ = seen;
        for (const auto &[name, _] : graph_.items()) {
            need(name);
        }
    }

    std::any &output(const std::string &from, const std::string &reference) {
        if (reference.empty() || reference[0] != '@') {
            throw std::runtime_error(from + ": expected a reference such as \"@node\", got \"" + reference + "\"");
        }
        const auto dot = reference.find('.');
        const std::string node = reference.substr(1, dot == std::string::npos ? dot : dot - 1);
        const std::string name = dot == std::string::npos ? "" : reference.substr(dot + 1);
        Outputs &outputs = need(node);
        const auto found = outputs.find(name);
        if (found == outputs.end()) {
            throw std::runtime_error(from + ": node " + node + " has no output \"" + name + "\"");
        }
        return found->second;
    }

  private:
    Outputs &need(const std::string &name) {
        if (const auto done = done_.find(name); done != done_.end()) {
            return done->second;
        }
        if (!graph_.contains(name)) {
            throw std::runtime_error("no node is named \"" + name + "\"");
        }
        if (!running_.insert(name).second) {
            throw std::runtime_error("node " + name + " needs its own result");
        }
        const Json &json = graph_[name];
        const std::string kind = json.value("class", "");
        const auto found = classes_.find(kind);
        if (found == classes_.end()) {
            std::string known;
            for (const auto &[other, _] : classes_) {
                known += " " + other;
            }
            throw std::runtime_error("node " + name + ": no class \"" + kind + "\"; there are" + known);
        }
        // Running a node may run others, which adds to done_: a map keeps its elements where they are.
        Outputs outputs = found->second(Inputs(*this, name, json));
        running_.erase(name);
        Outputs &kept = done_[name] = std::move(outputs);
        seen_(name, kept);
        return kept;
    }

    std::map<std::string, Class> classes_;
    Json graph_;
    std::map<std::string, Outputs> done_;
    std::set<std::string> running_;
    std::function<void(const std::string &, const Outputs &)> seen_;
};

template <class T> T &Inputs::linked(const std::string &name) const {
    std::any &value = host_.output(node_ + "." + name, this->value<std::string>(name));
    if (T *typed = std::any_cast<T>(&value)) {
        return *typed;
    }
    throw std::runtime_error(node_ + "." + name + ": the output it refers to is of another type");
}
