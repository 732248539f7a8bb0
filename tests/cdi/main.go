// What the reference implementation of the Container Device Interface does with files of devices; the suite cdi compares.
//
//	cdi-reference inject DIRECTORY,DIRECTORY DEVICE...    how it changes a container, and which files it refuses, as JSON
//	cdi-reference write DIRECTORY NAME                    writes what standard input describes, as a device plugin does
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

type report struct {
	Devices []string          `json:"devices"`
	Broken  map[string]string `json:"broken"`
	Refused string            `json:"refused"`
	Spec    *oci.Spec         `json:"spec"`
}

func cache(directories ...string) *cdi.Cache {
	opened, _ := cdi.NewCache(cdi.WithSpecDirs(directories...), cdi.WithAutoRefresh(false))
	return opened
}

func inject(directories []string, devices []string) report {
	opened := cache(directories...)
	found := report{Devices: opened.ListDevices(), Broken: map[string]string{}}
	for path, errors := range opened.GetErrors() {
		found.Broken[path] = fmt.Sprint(errors)
	}
	found.Spec = &oci.Spec{Process: &oci.Process{}, Linux: &oci.Linux{}}
	if _, err := opened.InjectDevices(found.Spec, devices...); err != nil {
		found.Refused = err.Error()
	}
	return found
}

func write(directory string, name string) error {
	var spec specs.Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return err
	}
	return cache(directory).WriteSpec(&spec, name)
}

func main() {
	arguments := os.Args[1:]
	var err error
	switch {
	case len(arguments) >= 2 && arguments[0] == "inject":
		err = json.NewEncoder(os.Stdout).Encode(inject(strings.Split(arguments[1], ","), arguments[2:]))
	case len(arguments) == 3 && arguments[0] == "write":
		err = write(arguments[1], arguments[2])
	default:
		err = fmt.Errorf("usage: cdi-reference inject DIRECTORY,DIRECTORY DEVICE... | write DIRECTORY NAME")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cdi-reference:", err)
		os.Exit(1)
	}
}
