// A plugin on the reference's stub that notes what it is told, and does what annotations of pods and containers say.
//
//	plugin -name NAME -idx NN -socket PATH -log FILE [-events LIST]
//
// The daemon may start it as well; its configuration is the path of the log then. One JSON object a line:
// {"plugin": "10-x", "event": "CreateContainer", "pod": {...}, "container": {...}}.
//
//	nri.test/adjust-NN       a ContainerAdjustment (protojson) for the container
//	nri.test/updates-NN      a list of ContainerUpdate that CreateContainer answers with
//	nri.test/resources-NN    LinuxResources that UpdateContainer answers with for its own container
//	nri.test/request-NN      a list of ContainerUpdate that the plugin asks for by itself once the container runs
//	nri.test/fail-NN         EVENT: REASON, an event to refuse
//	nri.test/hang-NN         an event that is never answered
//	nri.test/reject-NN       why ValidateContainerAdjustment rejects the container
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

type plugin struct {
	stub   stub.Stub
	name   string
	idx    string
	events string
	path   string
	lock   sync.Mutex
	log    *os.File
}

func raw(message proto.Message) json.RawMessage {
	bytes, err := protojson.Marshal(message)
	if err != nil {
		return json.RawMessage("null")
	}
	return bytes
}

func (p *plugin) note(event string, fields map[string]any) {
	fields["plugin"] = p.idx + "-" + p.name
	fields["event"] = event
	line, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.log != nil {
		p.log.Write(append(line, '\n'))
	}
}

func (p *plugin) open(path string) error {
	log, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		p.log = log
	}
	return err
}

func (p *plugin) order(what string, pod *api.PodSandbox, container *api.Container) (string, bool) {
	key := "nri.test/" + what + "-" + p.idx
	if value, found := container.GetAnnotations()[key]; found {
		return value, true
	}
	value, found := pod.GetAnnotations()[key]
	return value, found
}

// told notes an event, and refuses it or never returns if it shall.
func (p *plugin) told(event string, pod *api.PodSandbox, container *api.Container) error {
	fields := map[string]any{"pod": raw(pod)}
	if container != nil {
		fields["container"] = raw(container)
	}
	p.note(event, fields)
	if which, found := p.order("hang", pod, container); found && which == event {
		select {}
	}
	if text, found := p.order("fail", pod, container); found {
		if reason, is := strings.CutPrefix(text, event+": "); is {
			return errors.New(reason)
		}
	}
	return nil
}

func updates(text string) ([]*api.ContainerUpdate, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal([]byte(text), &parts); err != nil {
		return nil, err
	}
	var all []*api.ContainerUpdate
	for _, part := range parts {
		update := &api.ContainerUpdate{}
		if err := protojson.Unmarshal(part, update); err != nil {
			return nil, err
		}
		all = append(all, update)
	}
	return all, nil
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	if config != "" {
		if err := p.open(strings.TrimSpace(config)); err != nil {
			return 0, err
		}
	}
	p.note("Configure", map[string]any{"runtime": runtime, "version": version, "nri": p.stub.RuntimeNRIVersion()})
	return api.ParseEventMask(p.events)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	known, made := []json.RawMessage{}, []json.RawMessage{}
	for _, pod := range pods {
		known = append(known, raw(pod))
	}
	for _, container := range containers {
		made = append(made, raw(container))
	}
	p.note("Synchronize", map[string]any{"pods": known, "containers": made})
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("RunPodSandbox", pod, nil)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.told("UpdatePodSandbox", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("PostUpdatePodSandbox", pod, nil)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("StopPodSandbox", pod, nil)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.told("RemovePodSandbox", pod, nil)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.told("CreateContainer", pod, container); err != nil {
		return nil, nil, err
	}
	adjust := &api.ContainerAdjustment{}
	if text, found := p.order("adjust", pod, container); found {
		if err := protojson.Unmarshal([]byte(text), adjust); err != nil {
			return nil, nil, err
		}
	}
	text, found := p.order("updates", pod, container)
	if !found {
		return adjust, nil, nil
	}
	all, err := updates(text)
	return adjust, all, err
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostCreateContainer", pod, container)
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("StartContainer", pod, container)
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	if text, found := p.order("request", pod, container); found {
		go p.request(text)
	}
	return p.told("PostStartContainer", pod, container)
}

func (p *plugin) request(text string) {
	all, err := updates(text)
	if err != nil {
		p.note("UpdateContainers", map[string]any{"error": err.Error()})
		return
	}
	failed, err := p.stub.UpdateContainers(all)
	ids := []string{}
	for _, update := range failed {
		ids = append(ids, update.GetContainerId())
	}
	fields := map[string]any{"failed": ids}
	if err != nil {
		fields["error"] = err.Error()
	}
	p.note("UpdateContainers", fields)
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.told("UpdateContainer", pod, container); err != nil {
		return nil, err
	}
	text, found := p.order("resources", pod, container)
	if !found {
		return nil, nil
	}
	resources := &api.LinuxResources{}
	if err := protojson.Unmarshal([]byte(text), resources); err != nil {
		return nil, err
	}
	linux := &api.LinuxContainerUpdate{Resources: resources}
	return []*api.ContainerUpdate{{ContainerId: container.GetId(), Linux: linux}}, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("PostUpdateContainer", pod, container)
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.told("StopContainer", pod, container)
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.told("RemoveContainer", pod, container)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	p.note("ValidateContainerAdjustment", map[string]any{"request": raw(request)})
	if reason, found := p.order("reject", request.GetPod(), request.GetContainer()); found {
		return errors.New(reason)
	}
	return nil
}

func main() {
	p := &plugin{}
	var socket string
	flag.StringVar(&p.name, "name", os.Getenv(api.PluginNameEnvVar), "the plugin's name")
	flag.StringVar(&p.idx, "idx", os.Getenv(api.PluginIdxEnvVar), "the plugin's index")
	flag.StringVar(&socket, "socket", "", "where the runtime listens")
	flag.StringVar(&p.path, "log", "", "where events are noted")
	flag.StringVar(&p.events, "events", "all", "events to subscribe for")
	flag.Parse()
	if p.path != "" {
		if err := p.open(p.path); err != nil {
			panic(err)
		}
	}
	options := []stub.Option{stub.WithOnClose(func() { os.Exit(0) })}
	// What the environment says, the stub knows already.
	if os.Getenv(api.PluginNameEnvVar) == "" {
		options = append(options, stub.WithPluginName(p.name), stub.WithPluginIdx(p.idx))
	}
	if socket != "" {
		options = append(options, stub.WithSocketPath(socket))
	}
	var err error
	if p.stub, err = stub.New(p, options...); err != nil {
		panic(err)
	}
	if err = p.stub.Run(context.Background()); err != nil {
		os.Exit(1)
	}
}
