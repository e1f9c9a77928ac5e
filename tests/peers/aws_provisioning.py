"""Says what AWS' own library says at fleet provisioning: subscribes to the answers, asks for a certificate and a thing.

Arguments: port, ca, cert, key, client id, template, a file with the request for a certificate, token, serial number.
"""

import sys

from awscrt import mqtt
from awsiot import iotidentity, mqtt_connection_builder

port, ca, cert, key, client_id, template, csr, token, serial = sys.argv[1:]
connection = mqtt_connection_builder.mtls_from_path(
    endpoint="localhost", port=int(port), ca_filepath=ca, cert_filepath=cert, pri_key_filepath=key,
    client_id=client_id, clean_session=True, keep_alive_secs=60)
connection.connect().result(20)
client = iotidentity.IotIdentityClient(connection)
qos = mqtt.QoS.AT_LEAST_ONCE
for subscribe, request in [
    (client.subscribe_to_create_certificate_from_csr_accepted,
     iotidentity.CreateCertificateFromCsrSubscriptionRequest()),
    (client.subscribe_to_create_certificate_from_csr_rejected,
     iotidentity.CreateCertificateFromCsrSubscriptionRequest()),
    (client.subscribe_to_register_thing_accepted, iotidentity.RegisterThingSubscriptionRequest(template_name=template)),
    (client.subscribe_to_register_thing_rejected, iotidentity.RegisterThingSubscriptionRequest(template_name=template)),
]:
    future, _ = subscribe(request=request, qos=qos, callback=lambda answer: None)
    future.result(20)
request = iotidentity.CreateCertificateFromCsrRequest(certificate_signing_request=open(csr).read())
client.publish_create_certificate_from_csr(request, qos).result(20)
request = iotidentity.RegisterThingRequest(
    template_name=template, certificate_ownership_token=token, parameters={"SerialNumber": serial})
client.publish_register_thing(request, qos).result(20)
connection.disconnect().result(20)
print("done")
