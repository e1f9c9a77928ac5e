"""Says what AWS' own library says of a thing's shadow and jobs, and gets the answers.

Arguments: port, ca, cert, key, client id, thing, shadow ("" = the classic one), reported as JSON, job, update as JSON.
Prints each answer as JSON: of the shadow, of its update, the job that was started, and "done" once the job is updated.
"""

import json
import queue
import sys

from awscrt import mqtt
from awsiot import iotjobs, iotshadow, mqtt_connection_builder

port, ca, cert, key, client_id, thing, shadow, reported, job, update = sys.argv[1:]
connection = mqtt_connection_builder.mtls_from_path(
    endpoint="localhost", port=int(port), ca_filepath=ca, cert_filepath=cert, pri_key_filepath=key,
    client_id=client_id, clean_session=True, keep_alive_secs=60)
connection.connect().result(20)
qos, answers = mqtt.QoS.AT_LEAST_ONCE, queue.Queue()
shadows, jobs = iotshadow.IotShadowClient(connection), iotjobs.IotJobsClient(connection)
named = {"shadow_name": shadow} if shadow else {}


def of(kind, **more):
    """A request of the library, for the named shadow or the classic one."""
    name = kind if shadow else kind.replace("NamedShadow", "Shadow")
    return getattr(iotshadow, name)(thing_name=thing, **named, **more)


def call(name, *words, **more):
    getattr(shadows, name if shadow else name.replace("named_shadow", "shadow"))(*words, **more)


def subscribe(client, name, request):
    name = name if shadow else name.replace("named_shadow", "shadow")
    future, _ = getattr(client, name)(request=request, qos=qos, callback=answers.put)
    future.result(20)


subscribe(shadows, "subscribe_to_get_named_shadow_accepted", of("GetNamedShadowSubscriptionRequest"))
subscribe(shadows, "subscribe_to_get_named_shadow_rejected", of("GetNamedShadowSubscriptionRequest"))
subscribe(shadows, "subscribe_to_update_named_shadow_accepted", of("UpdateNamedShadowSubscriptionRequest"))
subscribe(shadows, "subscribe_to_update_named_shadow_rejected", of("UpdateNamedShadowSubscriptionRequest"))
subscribe(shadows, "subscribe_to_delete_named_shadow_accepted", of("DeleteNamedShadowSubscriptionRequest"))
subscribe(shadows, "subscribe_to_named_shadow_updated_events", of("NamedShadowUpdatedSubscriptionRequest"))
call("publish_get_named_shadow", of("GetNamedShadowRequest", client_token="t-1"), qos)
answer = answers.get(timeout=20)
print(json.dumps(answer.state.desired), flush=True)
state = iotshadow.ShadowState(reported=json.loads(reported))
call("publish_update_named_shadow", of("UpdateNamedShadowRequest", client_token="t-2", state=state), qos)
both = [answers.get(timeout=20), answers.get(timeout=20)]
print(json.dumps(sorted(type(one).__name__ for one in both)), flush=True)

subscribe(jobs, "subscribe_to_next_job_execution_changed_events",
          iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=thing))
started = iotjobs.StartNextPendingJobExecutionSubscriptionRequest(thing_name=thing)
subscribe(jobs, "subscribe_to_start_next_pending_job_execution_accepted", started)
subscribe(jobs, "subscribe_to_start_next_pending_job_execution_rejected", started)
subscribe(jobs, "subscribe_to_update_job_execution_rejected",
          iotjobs.UpdateJobExecutionSubscriptionRequest(thing_name=thing, job_id="+"))
jobs.publish_start_next_pending_job_execution(
    iotjobs.StartNextPendingJobExecutionRequest(thing_name=thing, client_token="t-3"), qos)
execution = answers.get(timeout=20).execution
print(json.dumps([execution.job_id, execution.execution_number, execution.job_document]), flush=True)
said = json.loads(update)
jobs.publish_update_job_execution(iotjobs.UpdateJobExecutionRequest(
    thing_name=thing, job_id=job, status=said["status"], status_details=said["statusDetails"]), qos).result(20)
connection.disconnect().result(20)
print("done", flush=True)
